"""Components that collapse under the gradient: found in the runs of the program, named, and refused.

Closed forms see a spread go to nothing as they solve for it, or concentrations grow without limit. What a gradient
moves is looked at where each E-step runs the program: its observed sites tell these, and a backward pass tells the
parameter behind one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_em.compiled.collapse import COLLAPSED
from pyro_em.compiled.sharp import SHARP
from pyro_em.em.shares import Share
from pyro_em.em.spread import concentration_of, kind_of, moments_of, spread_of
from pyro_em.errors import DegenerateError
from pyro_em.graph import FactorGraph, alike
from pyro_em.graph.build import Structure
from pyro_em.probing.moments import Moments

__all__ = ["Narrow", "Watch"]


@dataclass(frozen=True)
class Narrow:
    """Spreads of a site that are nothing beside the data, or concentrations that are beyond all limits.

    Attributes:
        site: its name.
        where: which elements, over the site's axes.
        share: the data that they were seen with.
    """

    site: str
    where: Tensor
    share: Share


@dataclass
class Watch:
    """Looks at spreads, once moments of all data are known.

    Attributes:
        dtype: of the arithmetic, which tells how little is nothing.
        is_complete: whether all shares have been noted.
    """

    dtype: torch.dtype
    is_complete: bool = False
    _moments: dict[str, Moments] = field(default_factory=dict, repr=False)

    def note(self, found: Structure, graph: FactorGraph) -> None:
        """Add the data of a share to the moments."""
        factors, done = {f.name: f for f in graph.factors}, set[str]()
        for name, site in found.sites.items():
            if name in done or spread_of(site) is None:
                continue
            names = alike(graph, name, lambda n: kind_of(found.sites[n]))
            own = moments_of([found.sites[n] for n in names], factors[name])
            done.update(names)
            for n in names:
                self._moments[n] = self._moments[n] + own if n in self._moments else own

    def look(self, share: Share, found: Structure) -> list[Narrow]:
        """What is nothing, or too much, in a run."""
        narrow = []
        for name, site in found.sites.items() if self.is_complete else ():
            spread, lowest = spread_of(site), concentration_of(site)
            if spread is not None and name in self._moments:
                where = spread.value.square() <= COLLAPSED[self.dtype] * self._moments[name].variance
            elif lowest is not None:
                where = lowest[1] >= SHARP[self.dtype]
            else:
                continue
            if bool(where.any()):
                narrow.append(Narrow(name, where, share))
        return narrow

    def error(self, narrow: Sequence[Narrow], leaves: Mapping[str, Tensor]) -> DegenerateError | None:
        """The first of them that these leaves brought about; the parameters are still in place."""
        for one in narrow:
            error = _error(one, leaves)
            if error is not None:
                return error
        return None


def _error(narrow: Narrow, leaves: Mapping[str, Tensor]) -> DegenerateError | None:
    with torch.enable_grad():
        site = narrow.share.structure().sites[narrow.site]
        spread, lowest = spread_of(site), concentration_of(site)
        argument, value = lowest or ("", torch.zeros(()))
        if spread is not None:
            argument, value = spread.argument, spread.value
        values, went = value.expand(narrow.where.shape)[narrow.where], "fell" if spread is not None else "rose"
    if not values.requires_grad:
        return None
    own = list(leaves.values())
    at = _moved(values, own)
    if at is None:
        return None
    slopes = torch.autograd.grad(values[at], own, allow_unused=True)
    behind = {n: s.abs() for n, s in zip(leaves, slopes, strict=True) if s is not None}
    name = max(behind, key=lambda n: float(behind[n].max()))
    slope, reached = behind[name], float(values[at].detach())
    element = tuple(int(i) for i in torch.unravel_index(slope.argmax(), slope.shape)) if slope.dim() else ()
    return DegenerateError(
        f"A component collapsed: {argument} of site {narrow.site!r}, given by parameter {name!r} at {list(element)}, "
        f"{went} to {reached:.3g}, so that its spread is nothing beside the data. The likelihood has no maximum there. "
        "Share the parameter over components, give it a prior or the argument a lower bound, or start elsewhere "
        '(restarts=, start=, on_degenerate="restart"); "floor" and "drop" hold for parameters that have a closed form.',
        name,
        element,
        reached,
    )


def _moved(values: Tensor, leaves: Sequence[Tensor]) -> int | None:
    """Which of the values the leaves move most: the others may be constants. ``None`` where they move none.

    A vector-Jacobian product is linear in its vector, so its own derivative is the Jacobian without a pass a value.
    """
    vector = torch.ones_like(values, requires_grad=True)
    back = torch.autograd.grad(values, leaves, vector, create_graph=True, allow_unused=True)
    reached = [b for b in back if b is not None and b.requires_grad]
    if not reached:
        return None
    total = torch.stack([(b * b.detach()).sum() for b in reached]).sum()
    (moves,) = torch.autograd.grad(total, vector)
    return int(moves.abs().argmax()) if bool(moves.any()) else None
