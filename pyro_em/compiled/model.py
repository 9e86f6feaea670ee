"""A probed model as tensors: expected statistics and log evidence at any theta, without running the program."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book, books_of, kind_of, located
from pyro_em.compiled.chain import Chain
from pyro_em.compiled.elements import ElementFactor, element_factor
from pyro_em.compiled.evaluate import base_measure
from pyro_em.compiled.factor import tensor_factor
from pyro_em.compiled.general import General, connected
from pyro_em.compiled.mixture import Mixture
from pyro_em.compiled.origin import with_origin
from pyro_em.compiled.pieces import InMemory, Pieces
from pyro_em.compiled.point import AnyFactor, Point, Tally, Values
from pyro_em.compiled.sparse import sparse_factor
from pyro_em.families import Family
from pyro_em.graph.factor import row_weights
from pyro_em.probing import Coordinates, ProbedSite, SiteParts
from pyro_em.probing.condensed import AllBatches
from pyro_em.probing.moments import moments_of
from pyro_em.probing.trim import trimmed

__all__ = ["Expectation", "TensorModel", "assemble", "book_of", "tensor_model"]


@dataclass(frozen=True)
class Expectation:
    """What an E-step leaves behind.

    Attributes:
        log_evidence: log p(x), nats.
        spread: root of the sum of squares of its terms.
        stats: for each book, expected features and counts, shape (C, S + 1).
        pieces: sites by element, with posteriors of their states.
        point: where it was made.
    """

    log_evidence: float
    spread: float
    stats: tuple[Tensor, ...]
    pieces: Pieces
    point: Point

    def __add__(self, other: Expectation) -> Expectation:
        """Of two sets of data together, all but the pieces: to go through these is the caller's."""
        stats = tuple(a + b for a, b in zip(self.stats, other.stats, strict=True))
        spread = (self.spread**2 + other.spread**2) ** 0.5
        return Expectation(self.log_evidence + other.log_evidence, spread, stats, self.pieces, self.point)

    @property
    def magnitude(self) -> float:
        """Sum of the absolute products of features and coefficients: what rounding is proportional to."""
        pairs = zip(self.point.coefficients.values(), self.stats, strict=True)
        return sum(float((torch.where(c < -1e29, 0.0, c) * s).abs().sum()) for c, s in pairs)


@dataclass(frozen=True)
class TensorModel:
    """A model whose every argument is a selection of parameters, or affine in them.

    Attributes:
        coordinates: what theta's elements are.
        books: cells by family.
        factors: in the model's order.
        mixtures, generals, chains: the factors by how they are summed out.
        base: the part of the log evidence that no parameter touches.
    """

    coordinates: Coordinates
    books: tuple[Book, ...]
    factors: tuple[AnyFactor, ...]
    mixtures: tuple[Mixture, ...]
    generals: tuple[General, ...]
    chains: tuple[Chain, ...]
    base: float

    @cached_property
    def is_direct(self) -> bool:
        """Whether its E-step takes no gradients."""
        return not self.generals and all(chain.is_direct for chain in self.chains)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The least exact arithmetic among the E-steps."""
        flats = [m.flat for m in self.mixtures] + [f for c in self.chains for f in c.flats if f is not None]
        single = any(f.dtype == torch.float32 for f in flats)
        return torch.float32 if single else torch.float64

    def expect(self, theta: Tensor, known: Values | None = None) -> Expectation:
        """The E-step at theta; ``known`` are values there of some of the books."""
        point = Point.at(theta, self.books, self.coordinates, known)
        tally = Tally.of(point)
        evidence, squares = self.base, 0.0
        for mixture in self.mixtures:
            totals = mixture.expect(point, tally)
            evidence, squares = evidence + totals.log_evidence, squares + totals.squares
        others: tuple[General | Chain, ...] = (*self.generals, *self.chains)
        for other in others:
            value, spread = other.expect(point, tally)
            evidence, squares = evidence + value, squares + spread**2
        evidence = evidence if evidence > -1e29 else -torch.inf
        return self.expectation(tally, evidence, squares**0.5)

    def expectation(self, tally: Tally, log_evidence: float, spread: float) -> Expectation:
        """The tally of an E-step that is complete."""
        weights = {name: torch.cat(parts) for name, parts in tally.weights.items()}
        stats = tuple(tally.stats[id(b)] for b in self.books)
        return Expectation(
            log_evidence, spread, stats, InMemory(self._by_element, weights, tally.point.theta), tally.point
        )

    @cached_property
    def _by_element(self) -> tuple[ElementFactor, ...]:
        return tuple(f for f in self.factors if isinstance(f, ElementFactor))


def tensor_model(
    sites: Sequence[ProbedSite],
    coordinates: Coordinates,
    scales: Mapping[str, float],
    plate_weights: Mapping[str, Tensor],
    by_element: Collection[str] = (),
    union: AllBatches | None = None,
) -> TensorModel:
    """Compile probed sites.

    Args:
        sites: without the priors of point-estimated latents.
        by_element: those with an affine argument, or that share parameters with one.
        scales: ``poutine.scale`` by site.
        plate_weights: weights of the data by plate.
        union: of a first batch, what is known of all.
    """
    sites = [trimmed(s) for s in sites]
    cellular = [s for s in sites if s.name not in by_element]
    parts = {s.name: s.parts for s in cellular if isinstance(s.parts, SiteParts)}
    known = cellular if union is None else [union.sites[s.name] for s in cellular]
    located_parts = {n: p for n, p in parts.items() if any(a.location for a in p.family.args)}
    moments = {n: moments_of(p) for n, p in located_parts.items()} if union is None else union.moments
    books = tuple(with_origin(book, parts, moments, coordinates) for book in books_of(known, coordinates))
    if union is None:
        cells = {name: cell for book in books for name, cell in book.maps.items()}
    else:
        cells = {s.name: located(book_of(books, s.name), s, coordinates) for s in cellular}
    return assemble(sites, books, cells, coordinates, scales, plate_weights)


def book_of(books: Sequence[Book], name: str) -> Book:
    """The book that has a site."""
    return next(book for book in books if name in book.maps)


def assemble(
    sites: Sequence[ProbedSite],
    books: tuple[Book, ...],
    cells: Mapping[str, Tensor],
    coordinates: Coordinates,
    scales: Mapping[str, float],
    plate_weights: Mapping[str, Tensor],
) -> TensorModel:
    """The tensors of sites whose books are known.

    Args:
        cells: which of its book's cells each element of a site uses; sites that have none are kept by element.
    """
    families = _joined([s for s in sites if s.name not in cells])
    factors: list[AnyFactor] = [
        _factor(s, book_of(books, s.name), cells[s.name], plate_weights)
        if s.name in cells
        else element_factor(s, families[s.name], coordinates, plate_weights)
        for s in sites
    ]
    mixtures, generals, chains, base = [], [], [], 0.0
    for group in connected(factors):
        scale = scales[group[0].name]
        weights = row_weights(group[0].plates, plate_weights)
        base += scale * sum(base_measure(f, row_weights(f.plates, plate_weights)) for f in group)
        if group[0].stack is not None:
            chains.append(Chain.of(group, plate_weights, scale))
        elif _is_mixture(group):
            informed = _informed(group)
            if informed is not None:
                weights = informed if weights is None else weights * informed
            mixtures.append(Mixture.of(group, weights, scale))
        else:
            generals.append(General(tuple(group), plate_weights, scale))
    return TensorModel(coordinates, books, tuple(factors), tuple(mixtures), tuple(generals), tuple(chains), base)


def _joined(sites: Sequence[ProbedSite]) -> dict[str, Family]:
    """For each site the family that serves all that are like it, as arguments that they share pool their statistics."""
    own = {s.name: s.parts.family for s in sites if isinstance(s.parts, SiteParts)}
    found: dict[object, Family] = {}
    for family in own.values():
        kind = kind_of(family)
        found[kind] = found[kind].join(family) if kind in found else family
    return {name: found[kind_of(family)] for name, family in own.items()}


def _factor(site: ProbedSite, book: Book, cell: Tensor, weights: Mapping[str, Tensor]) -> AnyFactor:
    """A site over its cells."""
    assert isinstance(site.parts, SiteParts)
    if site.parts.data.layout is torch.sparse_csr:
        return sparse_factor(site.parts, book, cell)
    return tensor_factor(site.parts, book, cell, weights)


def _is_mixture(group: Sequence[AnyFactor]) -> bool:
    first = group[0]
    alike = all(f.scope == first.scope and f.plates == first.plates for f in group)
    return alike and len(first.scope) == 1 and len(first.plates) > 0


def _informed(group: Sequence[AnyFactor]) -> Tensor | None:
    """One for rows with an observation that counts, zero for others; ``None`` where all have one."""
    seen = [f for f in group if f.own is None]
    if not seen:
        return torch.zeros(group[0].num_rows, dtype=torch.float64)
    if any(f.active is None for f in seen):
        return None
    active = torch.stack([f.active for f in seen if f.active is not None]).any(0)
    return None if bool(active.all()) else active.to(torch.float64)
