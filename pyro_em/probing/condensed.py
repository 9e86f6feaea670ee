"""Sites of many batches as one: every way in which their elements use parameters, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from pyro_em.probing.moments import Moments
from pyro_em.probing.probe import ProbedSite
from pyro_em.probing.routes import Route, Selected
from pyro_em.probing.sites import SiteParts

__all__ = ["AllBatches", "condensed", "united"]


@dataclass(frozen=True)
class AllBatches:
    """What is known of the data of all batches.

    Attributes:
        sites: those of selections, condensed.
        moments: by site of a family with a location, of its data.
    """

    sites: dict[str, ProbedSite]
    moments: dict[str, Moments]


def condensed(site: ProbedSite) -> ProbedSite:
    """A site of selections whose index maps have one axis in place of plates and states: along it, each event element
    has every combination of entries that it uses.
    """
    assert isinstance(site.parts, SiteParts)
    return _rebuilt(site, [_selections(site)], len(site.parts.dims))


def united(one: ProbedSite, other: ProbedSite) -> ProbedSite:
    """Two condensed sites of the same name as one; their families joined."""
    assert isinstance(one.parts, SiteParts) and isinstance(other.parts, SiteParts)
    found = _rebuilt(one, [_selections(one), _selections(other)], 1)
    params = tuple(dict.fromkeys([*one.params, *other.params]))
    return replace(found, params=params, parts=replace(one.parts, family=one.parts.family.join(other.parts.family)))


def _selections(site: ProbedSite) -> dict[str, Selected]:
    return {name: route for name, route in site.routes.items() if isinstance(route, Selected)}


def _rebuilt(site: ProbedSite, members: Sequence[Mapping[str, Selected]], dims: int) -> ProbedSite:
    """A site condensed from index maps that have so many axes of plates and states."""
    assert isinstance(site.parts, SiteParts)
    ranks = {a.name: a.rank for a in site.parts.family.args}
    constants = {n: torch.cat([m[n].constants for m in members]).unique() for n in ranks}
    tables = [{n: _renumbered(r, constants[n]) for n, r in member.items()} for member in members]
    events = _events(tables, ranks, dims)
    blocks = {n: tables[0][n].shape[tables[0][n].dim() - ranks[n] :] for n in ranks}
    kept = _distinct(torch.cat([_in_rows(t, ranks, dims, events) for t in tables]))
    columns = kept.split([prod(b) for b in blocks.values()], -1)
    routes: dict[str, Route] = {
        n: Selected(part.reshape(len(kept), *events, *blocks[n]), constants[n], _link(n, members))
        for n, part in zip(ranks, columns, strict=True)
    }
    return replace(site, routes=routes)


def _renumbered(route: Selected, constants: Tensor) -> Tensor:
    """The index map with each constant at its place among others."""
    if not len(route.constants):
        return route.index
    places = torch.searchsorted(constants, route.constants)
    return torch.where(route.index < 0, -1 - places[(-1 - route.index).clamp_min(0)], route.index)


def _link(name: str, members: Sequence[Mapping[str, Selected]]) -> str:
    """The link of those that have parameters behind them: constants have none."""
    return next((m[name].link for m in members if not m[name].is_constant), "identity")


def _events(tables: Sequence[Mapping[str, Tensor]], ranks: Mapping[str, int], dims: int) -> tuple[int, ...]:
    """Sizes of the event axes over all index maps."""
    shapes = [t[n].shape[dims : t[n].dim() - rank] for t in tables for n, rank in ranks.items()]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _in_rows(table: Mapping[str, Tensor], ranks: Mapping[str, int], dims: int, events: tuple[int, ...]) -> Tensor:
    """Index maps side by side: shape (plates and states, events, all blocks)."""
    leading = torch.broadcast_shapes(*(t.shape[:dims] for t in table.values()))
    found = []
    for n, rank in ranks.items():
        block = table[n].shape[table[n].dim() - rank :]
        found.append(table[n].expand(*leading, *events, *block).reshape(prod(leading), prod(events), prod(block)))
    return torch.cat(found, -1)


def _distinct(rows: Tensor) -> Tensor:
    """Each event's distinct rows; where it has fewer than another, its first again."""
    found = [torch.unique(rows[:, e], dim=0) for e in range(rows.shape[1])]
    longest = max(map(len, found))
    return torch.stack([torch.cat([f, f[:1].expand(longest - len(f), -1)]) for f in found], 1)
