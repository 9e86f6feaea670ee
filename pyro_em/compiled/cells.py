"""Which elements of which sites share their arguments: cells, and the values of each argument that cells share.

All sites of one family whose arguments come by the same links form a *book*: their statistics pool wherever they use
the same elements of theta, however many sites there are (time steps of a chain, say).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyro_em.compiled.sharp import concentrations, least
from pyro_em.errors import ModelError
from pyro_em.families import Cells, Family
from pyro_em.probing import Coordinates, ProbedSite, Selected, SiteParts
from pyro_em.probing.routes import linked

__all__ = ["Book", "books_of", "located", "picked", "stretch"]


@dataclass(frozen=True, eq=False)
class Book:
    """The cells of one family.

    Attributes:
        family: serves all sites.
        links: by argument.
        rows: by argument, positions in (theta, constants) of each value it takes, shape (G, *block).
        groups: by argument, which of those values each cell uses, shape (C,).
        constants: what stands behind theta.
        maps: by site, the cell of each element, shape (*dims, *events) with one along axes that repeat.
        origin: what data and locations are shifted by, shape (C, *block of the location), or ``None``.
        variance: of the data scored by each cell, about the origin, same shape.
        origins: by site, the same for its data, shape (*events, *event).
        names: the parameters among ``rows``.
        references: variances by argument, once they were asked for.
    """

    family: Family
    links: dict[str, str]
    rows: dict[str, Tensor]
    groups: dict[str, Tensor]
    constants: Tensor
    maps: dict[str, Tensor]
    names: frozenset[str]
    references: dict[str, Any] = field(default_factory=dict)
    origin: Tensor | None = None
    variance: Tensor | None = None
    origins: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def size(self) -> int:
        """Number of cells C."""
        return len(next(iter(self.groups.values())))

    @cached_property
    def location(self) -> str | None:
        """The argument that shifts with the data."""
        return next((a.name for a in self.family.args if a.location), None)

    @cached_property
    def spreads(self) -> frozenset[str]:
        """The arguments that shrink to nothing about one datum."""
        return frozenset(a.name for a in self.family.args if a.spread)

    def values(self, coordinates: Coordinates, theta: Tensor) -> dict[str, Tensor]:
        """Each argument's values at theta, shape (G, *block)."""
        sources = {link: self._source(coordinates, theta, link) for link in self._links}
        return {name: picked(sources[self.links[name]], rows, self.spans[name]) for name, rows in self.rows.items()}

    def _source(self, coordinates: Coordinates, theta: Tensor, link: str) -> Tensor:
        """What an argument's positions count in: theta through its link, and the constants."""
        source = theta if link == "identity" else linked(coordinates, theta, link)
        return torch.cat([source, self.constants]) if self.constants.numel() else source

    @cached_property
    def _links(self) -> frozenset[str]:
        return frozenset(self.links.values())

    @cached_property
    def spans(self) -> dict[str, int | None]:
        """Where an argument's values are one stretch of (theta, constants), its start: a view, not a gather."""
        return {name: stretch(rows) for name, rows in self.rows.items()}

    def spread(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each cell's arguments, the location relative to the origin: shape (C, *block)."""
        args = {name: v if self.own[name] else v[self.groups[name]] for name, v in values.items()}
        if self.origin is not None and self.location is not None:
            args[self.location] = args[self.location] - self.origin
        return args

    def coefficients(self, values: Mapping[str, Tensor]) -> Tensor:
        """What multiplies the features of each cell: shape (C, S + 1)."""
        return self.family.coefficients(**self.spread(values))

    def cells(self, name: str, stats: Tensor, values: Mapping[str, Tensor], pseudo: Tensor | None) -> Cells:
        """The statistics as the maximiser of one argument sees them."""
        group = None if self.own[name] else self.groups[name]
        return Cells(stats, self.spread(values), group, self.rows[name].shape[0], pseudo)

    @cached_property
    def own(self) -> dict[str, bool]:
        """By argument, whether every cell has a value of its own, in the order of the cells."""
        return {n: len(self.rows[n]) == len(g) and torch.equal(g, torch.arange(len(g))) for n, g in self.groups.items()}

    @cached_property
    def _pairs(self) -> dict[tuple[str, str], bool]:
        return {}

    def is_shared_over(self, one: str, other: str) -> bool:
        """Whether some value of argument ``one`` meets several values of ``other``."""
        if (one, other) not in self._pairs:
            pairs = torch.stack([self.groups[one], self.groups[other]]).unique(dim=1)
            self._pairs[one, other] = len(pairs[0].unique()) < pairs.shape[1]
        return self._pairs[one, other]

    def of_groups(self, argument: str, of_cells: Tensor, how: str) -> Tensor:
        """The least ("amin") or the largest ("amax") among the cells of each of an argument's values."""
        found = of_cells.new_zeros(len(self.rows[argument]), *of_cells.shape[1:])
        group = self.groups[argument].reshape(-1, *[1] * (of_cells.dim() - 1)).expand_as(of_cells)
        return found.scatter_reduce_(0, group, of_cells, how, include_self=False)

    def least_concentration(self, argument: str, values: Mapping[str, Tensor]) -> Tensor:
        """The least concentration beside each value of one of them, shape (G,); of all arguments, (their G, *block)."""
        of_cells = {n: values[n][self.groups[n]] for n in concentrations(self.family)}
        return least(self.family, of_cells, self.groups[argument], len(self.rows[argument]))

    @cached_property
    def shift(self) -> Tensor | None:
        """The origin of each value of the location, shape (G, *block)."""
        if self.origin is None or self.location is None:
            return None
        return self.of_groups(self.location, self.origin, "amax")  # all the same


def stretch(index: Tensor) -> int | None:
    """The first of consecutive positions; ``None`` where they are not."""
    flat = index.reshape(-1)
    if not len(flat) or not torch.equal(flat, flat[0] + torch.arange(len(flat))):
        return None
    return int(flat[0])


def picked(source: Tensor, index: Tensor, start: int | None) -> Tensor:
    """``source[index]``, as a view where the index is a stretch."""
    if start is None:
        return source[index]
    flat = source.narrow(0, start, index.numel())
    return flat if index.dim() == 1 else flat.view(index.shape)


def books_of(sites: Sequence[ProbedSite], coordinates: Coordinates) -> list[Book]:
    """Books for sites whose arguments are all selections."""
    found: dict[tuple[object, ...], list[ProbedSite]] = {}
    for site in sites:
        assert isinstance(site.parts, SiteParts)
        links = tuple(_selected(site, a.name).link for a in site.parts.family.args)
        found.setdefault((kind_of(site.parts.family), links), []).append(site)
    return [_book(members, coordinates) for members in found.values()]


def kind_of(family: Family) -> object:
    """What families that can be joined have in common."""
    sizes = {n: v for n, v in vars(family).items() if n == "size"}
    return type(family), tuple(sizes.items())


def _selected(site: ProbedSite, name: str) -> Selected:
    route = site.routes[name]
    assert isinstance(route, Selected)
    return route


def _book(members: list[ProbedSite], coordinates: Coordinates) -> Book:
    parts = [m.parts for m in members if isinstance(m.parts, SiteParts)]
    family = reduce(lambda one, other: one.join(other), (p.family for p in parts))
    arguments = [a.name for a in family.args]
    constants = torch.cat([_selected(m, a).constants for m in members for a in arguments]).unique()
    start = len(coordinates.owner())
    rows, maps = {}, {}
    for a in family.args:
        indices = [_behind_theta(_selected(m, a.name), constants, start) for m in members]
        rows[a.name], maps[a.name] = _unique_blocks(indices, a.rank)
    over = [torch.broadcast_tensors(*(maps[a][i] for a in arguments)) for i in range(len(members))]
    pairs = torch.cat([torch.stack([t.reshape(-1) for t in group], 1) for group in over])
    _, cells, inverse = _distinct(pairs)
    shapes = [group[0].shape for group in over]
    pieces = inverse.split([shape.numel() for shape in shapes])
    owner = coordinates.owner()
    used = torch.cat([r.reshape(-1) for r in rows.values()])
    names = list(coordinates.shapes)
    return Book(
        family=family,
        links={a: _selected(members[0], a).link for a in arguments},
        rows=rows,
        groups={a: cells[:, i].contiguous() for i, a in enumerate(arguments)},
        constants=constants,
        maps={m.name: piece.reshape(shape) for m, piece, shape in zip(members, pieces, shapes, strict=True)},
        names=frozenset(names[i] for i in owner[used[used < start]].unique().tolist()),
    )


def located(book: Book, site: ProbedSite, coordinates: Coordinates) -> Tensor:
    """The cell of each element of a site that is part of what the book was made of: shape (*dims, *events).

    Raises:
        ModelError: it is not.
    """
    start, places = len(coordinates.owner()), []
    for a in book.family.args:
        route = _selected(site, a.name)
        if len(route.constants):
            _positions(book.constants.unsqueeze(1), route.constants.unsqueeze(1), site.name)
        index = _behind_theta(route, book.constants, start)
        known = book.rows[a.name].flatten(1) if a.rank else book.rows[a.name].unsqueeze(1)
        shape = index.shape[: index.dim() - a.rank]
        places.append(_positions(known, index.reshape(-1, known.shape[1]), site.name).reshape(shape))
    over = torch.broadcast_tensors(*places)
    cells = torch.stack([book.groups[a.name] for a in book.family.args], 1)
    return _positions(cells, torch.stack([t.reshape(-1) for t in over], 1), site.name).reshape(over[0].shape)


def _positions(known: Tensor, wanted: Tensor, name: str) -> Tensor:
    """Where each row of ``wanted`` stands among those of ``known``, which are distinct and in order."""
    if known.shape[1] == 1:
        found = torch.searchsorted(known[:, 0].contiguous(), wanted[:, 0].contiguous()).clamp_max(len(known) - 1)
        same = bool((known[found] == wanted).all())
    else:
        count, _, inverse = _distinct(torch.cat([known, wanted]))
        found, same = inverse[len(known) :], count == len(known)
    if not same:
        raise ModelError(f"Arguments of site {name!r} in a batch are not what they were in the pass before.")
    return found


def _distinct(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many distinct rows of non-negative integers there are; these, in order; and which of them each row is."""
    sizes = [int(column.max()) + 1 if len(rows) else 1 for column in rows.unbind(1)]
    if prod(sizes) >= 2**62:
        found, inverse = torch.unique(rows, dim=0, return_inverse=True)
        return len(found), found, inverse
    keys = torch.zeros(len(rows), dtype=torch.long)  # one number for each row, which sorts as the row does
    for column, size in zip(rows.unbind(1), sizes, strict=True):
        keys = keys * size + column
    kept, inverse = torch.unique(keys, return_inverse=True)
    first = torch.full((len(kept),), len(rows)).scatter_reduce(0, inverse, torch.arange(len(rows)), "amin")
    return len(kept), rows[first], inverse


def _behind_theta(route: Selected, constants: Tensor, start: int) -> Tensor:
    """The index map with constants numbered after theta's elements."""
    if not len(route.constants):
        return route.index
    places = torch.searchsorted(constants, route.constants)
    return torch.where(route.index < 0, start + places[(-1 - route.index).clamp_min(0)], route.index)


def _unique_blocks(indices: list[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
    """The distinct blocks among index maps, and for each map which one stands where."""
    block = indices[0].shape[indices[0].dim() - rank :]
    if rank:
        flat = torch.cat([i.reshape(-1, *block).flatten(1) for i in indices])
        rows, inverse = torch.unique(flat, dim=0, return_inverse=True)
    else:  # the same by rows takes many times as long
        rows, inverse = torch.unique(torch.cat([i.reshape(-1) for i in indices]), return_inverse=True)
    shapes = [i.shape[: i.dim() - rank] for i in indices]
    pieces = inverse.split([torch.Size(shape).numel() for shape in shapes])
    return rows.reshape(-1, *block), [p.reshape(shape) for p, shape in zip(pieces, shapes, strict=True)]
