"""Runs of a model at chosen parameter values, with the sites that they show taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families import Argument
from pyro_em.graph import Intervention, Program
from pyro_em.graph.build import Structure, structure
from pyro_em.graph.hidden import is_hidden
from pyro_em.params import ParamSpace
from pyro_em.probing.apart import read
from pyro_em.probing.branches import Branches
from pyro_em.probing.coordinates import Coordinates
from pyro_em.probing.hidden import hidden_parts
from pyro_em.probing.sites import SiteParts
from pyro_em.probing.stacks import Pile, apart, find_piles

__all__ = ["Run", "near", "run"]

SPREADS = (0.3, 1e-2, 3e-4)  # of unconstrained coordinates


class _Substitute(Messenger):
    """Hand the model these tensors as parameter values, so that gradients can be taken in the values themselves."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


@dataclass(frozen=True)
class Run:
    """One run: its sites, those of a chain piled up, the parameters at its time, the tensors that gradients go back to
    (and those of the store, by identity, which a model may read behind Pyro's back), and the parameters it compares.
    """

    found: Structure
    piles: dict[str, Pile | None]
    parts: dict[str, SiteParts | str]
    theta: Tensor
    leaves: dict[str, Tensor]
    stored: dict[int, str]
    compared: frozenset[str]


def run(
    program: Program,
    space: ParamSpace,
    coordinates: Coordinates,
    data: tuple[Any, Any],
    intervention: Intervention,
    first: bool = False,
    piles: dict[str, Pile | None] | None = None,
    found: Structure | None = None,
) -> Run:
    """One run at the parameters in place.

    Args:
        first: whether to keep the gradients, and note what is compared.
        piles: which sites are taken as one; ``None`` finds out.
        found: the structure of a run at these parameters, where there is one.

    Raises:
        ModelError: the model does not run at these parameters.
    """
    leaves, latents = space.distinct(), set(space.latents())
    plain = {n for n, leaf in leaves.items() if n not in latents and leaf.constraint is constraints.real}
    values = {
        n: leaf.unconstrained if n in plain else leaf.value().detach().requires_grad_(first)
        for n, leaf in leaves.items()
    }
    theta = coordinates.flat(values)
    intervention.given = {n: values[n] for n in latents}
    substitute = _Substitute({n: v for n, v in values.items() if n not in plain and n not in latents})
    watch = Branches(values) if first else nullcontext()
    with torch.set_grad_enabled(first), pyro.validation_enabled(False), substitute, space.without_zeros():
        if found is None:
            with watch:
                trace = program.trace(*data, intervention)
            found = structure(trace, program.ignored)
        sites = {name: site for name, site in found.sites.items() if name not in latents}
        hidden = {name: site for name, site in sites.items() if is_hidden(site["fn"])}
        raws = {name: read(name, site, found) for name, site in sites.items() if name not in hidden}
        piles = find_piles(raws) if piles is None else piles
        parts = {name: apart(raws, pile, name) for name, pile in piles.items()}
        for name, site in hidden.items():
            parts.update(hidden_parts(name, site, found))
        parts = {name: _owned(part) for name, part in parts.items()}
    compared = frozenset(watch.compared) if isinstance(watch, Branches) else frozenset[str]()
    stored = {id(leaf.unconstrained): n for n, leaf in leaves.items()}
    return Run(found, piles, parts, theta, values, stored, compared)


def near(space: ParamSpace, again: Callable[..., Run], piles: dict[str, Pile | None]) -> list[Run]:
    """Runs at the parameters in place, and about as far from zero on this side and the other: as near as predictors
    need to stay within range, which covariates of large numbers leave soon.
    """
    first = again(first=True, piles=piles)
    others: list[Run] = []
    for spread in SPREADS:
        others = _beside(space, again, piles, spread)
        if all(_strayed(seen) <= _strayed(first) for seen in others):
            break
    return [first, *others]


def _beside(space: ParamSpace, again: Callable[..., Run], piles: dict[str, Pile | None], spread: float) -> list[Run]:
    start, runs = space.snapshot(), []
    try:
        for sign in (1.0, -1.0):
            space.restore({n: sign * u + spread * torch.randn_like(u) for n, u in start.items()})
            runs.append(again(piles=piles))
    finally:
        space.restore(start)
    return runs


def _strayed(seen: Run) -> set[tuple[str, str]]:
    """Sites and arguments beyond the range of numbers: infinite, or positive ones that are zero."""
    known = [(n, p) for n, p in seen.parts.items() if isinstance(p, SiteParts)]
    return {(n, a.name) for n, p in known for a in p.family.args if _is_beyond(p.arguments[a.name], a)}


def _is_beyond(values: Tensor, argument: Argument) -> bool:
    vanished = argument.domain is constraints.positive and bool((values == 0).any())
    return vanished or not bool(values.isfinite().all())


def _owned(parts: SiteParts | str) -> SiteParts | str:
    """A site's parts, with arguments of their own: an argument may be a parameter itself, which is about to move."""
    if isinstance(parts, str):
        return parts
    logits = None if parts.logits is None else parts.logits.clone()
    return replace(parts, arguments={n: a.clone() for n, a in parts.arguments.items()}, logits=logits)
