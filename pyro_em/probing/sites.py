"""A sample site taken apart: its family, and its arguments and data over named axes instead of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_em.families import Family
from pyro_em.families.multivariate_normal import MultivariateNormal
from pyro_em.families.normal import Normal
from pyro_em.graph.factor import Dim, Plate, Variable
from pyro_em.graph.frames import Frames

__all__ = ["SiteParts", "Stack", "as_independent"]


@dataclass(frozen=True)
class SiteParts:
    """A site over named axes. Tensors have one axis for each of ``dims``, one for each event dimension the family does
    not know of, then the family's own; an axis along which nothing changes has size one.

    Attributes:
        name: the site.
        family: its family.
        plates, scope: as in :class:`~pyro_em.graph.factor.Factor`.
        events: number of event axes.
        arguments: by name, (*dims, *events, *block).
        data: what the family calls x, (*dims, *events, *event).
        mask: where the density counts, (*dims, *events); ``None``, everywhere.
        active: over the plates, where any of it does.
        own: the variable that this site draws; ``None`` for an observation.
        logits: of ``probs``, where the program gave logits.
        stack: where the sites of a chain sit that are taken as one; the last of ``plates`` is then their time.
    """

    name: str
    family: Family
    plates: tuple[Plate, ...]
    scope: tuple[Variable, ...]
    events: int
    arguments: dict[str, Tensor]
    data: Tensor
    mask: Tensor | None
    active: Tensor | None
    own: Variable | None
    logits: Tensor | None = None
    stack: Stack | None = None

    @property
    def dims(self) -> tuple[Dim, ...]:
        """What the leading axes stand for."""
        return self.plates + self.scope


@dataclass(frozen=True)
class Stack:
    """Sites of a chain that differ in their frame only.

    Attributes:
        frames: the chain.
        time: stands for them among the plates.
        members: the sites, by frame.
        at: the frame of each, shape (n,).
        axes: of the scope's variables, as in :class:`~pyro_em.graph.frames.Seat`.
    """

    frames: Frames
    time: Plate
    members: tuple[str, ...]
    at: Tensor
    axes: tuple[tuple[int, int], ...]


def as_independent(runs: Sequence[SiteParts]) -> list[SiteParts]:
    """A multivariate Normal whose covariance is diagonal in all runs is a row of Normals, whose parameters may be tied
    in any way; other sites as they are.
    """
    if not all(isinstance(p.family, MultivariateNormal) and _is_diagonal(p.arguments["scale_tril"]) for p in runs):
        return list(runs)
    return [
        replace(
            p,
            family=Normal(),
            events=p.events + 1,
            arguments={"loc": p.arguments["loc"], "scale": p.arguments["scale_tril"].diagonal(dim1=-2, dim2=-1)},
            mask=None if p.mask is None else p.mask.unsqueeze(-1),
        )
        for p in runs
    ]


def _is_diagonal(matrix: Tensor) -> bool:
    return not bool((matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))).any())
