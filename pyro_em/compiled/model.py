"""A probed model as tensors: expected statistics and log evidence at any theta, without running the program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book, books_of
from pyro_em.compiled.evaluate import base_measure
from pyro_em.compiled.factor import TensorFactor, tensor_factor
from pyro_em.compiled.general import General, connected
from pyro_em.compiled.mixture import Mixture
from pyro_em.compiled.origin import with_origin
from pyro_em.probing import Coordinates, ProbedSite, SiteParts

__all__ = ["Expectation", "TensorModel", "tensor_model"]


@dataclass(frozen=True)
class Expectation:
    """What an E-step leaves behind.

    Attributes:
        log_evidence: log p(x), nats.
        spread: root of the sum of squares of its terms.
        stats: for each book, expected features and counts, shape (C, S + 1).
    """

    log_evidence: float
    spread: float
    stats: tuple[Tensor, ...]

    def __add__(self, other: Expectation) -> Expectation:
        """Of two sets of data together."""
        stats = tuple(a + b for a, b in zip(self.stats, other.stats, strict=True))
        spread = (self.spread**2 + other.spread**2) ** 0.5
        return Expectation(self.log_evidence + other.log_evidence, spread, stats)


@dataclass(frozen=True)
class TensorModel:
    """A model whose every argument is a selection of parameters.

    Attributes:
        coordinates: what theta's elements are.
        books: cells by family.
        factors: in the model's order.
        mixtures, generals: the factors by how they are summed out.
        base: the part of the log evidence that no parameter touches.
    """

    coordinates: Coordinates
    books: tuple[Book, ...]
    factors: tuple[TensorFactor, ...]
    mixtures: tuple[Mixture, ...]
    generals: tuple[General, ...]
    base: float

    @property
    def dtype(self) -> torch.dtype:
        """The least exact arithmetic among the E-steps."""
        single = any(m.dtype == torch.float32 for m in self.mixtures)
        return torch.float32 if single else torch.float64

    def expect(self, theta: Tensor) -> Expectation:
        """The E-step at theta."""
        values = [book.values(self.coordinates, theta) for book in self.books]
        coefficients = {id(b): b.coefficients(v) for b, v in zip(self.books, values, strict=True)}
        args = {id(b): b.spread(v) for b, v in zip(self.books, values, strict=True)}
        stats = {key: torch.zeros_like(c) for key, c in coefficients.items()}
        evidence, squares = self.base, 0.0
        for mixture in self.mixtures:
            totals = mixture.expect(coefficients, args, stats)
            evidence, squares = evidence + totals.log_evidence, squares + totals.squares
        for general in self.generals:
            value, spread = general.expect(coefficients, args, stats)
            evidence, squares = evidence + value, squares + spread**2
        evidence = evidence if evidence > -1e29 else -torch.inf
        return Expectation(evidence, squares**0.5, tuple(stats[id(b)] for b in self.books))


def tensor_model(
    sites: Sequence[ProbedSite],
    coordinates: Coordinates,
    scales: Mapping[str, float],
    plate_weights: Mapping[str, Tensor],
) -> TensorModel:
    """Compile sites that are all selections.

    Args:
        sites: without the priors of point-estimated latents.
        scales: ``poutine.scale`` by site.
        plate_weights: weights of the data by plate.
    """
    parts = {s.name: s.parts for s in sites if isinstance(s.parts, SiteParts)}
    books = [with_origin(book, parts) for book in books_of(sites, coordinates)]
    book_of = {name: book for book in books for name in book.maps}
    factors = [tensor_factor(parts[s.name], book_of[s.name]) for s in sites]
    return assemble(factors, books, coordinates, scales, plate_weights)


def assemble(
    factors: Sequence[TensorFactor],
    books: Sequence[Book],
    coordinates: Coordinates,
    scales: Mapping[str, float],
    plate_weights: Mapping[str, Tensor],
) -> TensorModel:
    """Choose how each connected part is summed out."""
    mixtures, generals, base = [], [], 0.0
    for group in connected(factors):
        scale = scales[group[0].name]
        weights = _row_weights(group[0], plate_weights)
        base += scale * sum(base_measure(f, _row_weights(f, plate_weights)) for f in group)
        if _is_mixture(group):
            informed = _informed(group)
            if informed is not None:
                weights = informed if weights is None else weights * informed
            mixtures.append(Mixture.of(group, weights, scale))
        else:
            generals.append(General(tuple(group), plate_weights, scale))
    return TensorModel(coordinates, tuple(books), tuple(factors), tuple(mixtures), tuple(generals), base)


def _is_mixture(group: Sequence[TensorFactor]) -> bool:
    first = group[0]
    alike = all(f.scope == first.scope and f.plates == first.plates for f in group)
    return alike and len(first.scope) == 1 and len(first.plates) > 0


def _row_weights(factor: TensorFactor, plate_weights: Mapping[str, Tensor]) -> Tensor | None:
    """The product of its plates' weights for each row."""
    found = [(i, plate_weights[p.name]) for i, p in enumerate(factor.plates) if p.name in plate_weights]
    if not found:
        return None
    total = torch.ones([p.size for p in factor.plates], dtype=torch.float64)
    for axis, w in found:
        total = total * w.to(torch.float64).reshape([-1 if i == axis else 1 for i in range(total.dim())])
    return total.reshape(-1)


def _informed(group: Sequence[TensorFactor]) -> Tensor | None:
    """One for rows with an observation that counts, zero for others; ``None`` where all have one."""
    seen = [f for f in group if not f.own]
    if not seen:
        return torch.zeros(group[0].num_rows, dtype=torch.float64)
    if any(f.active is None for f in seen):
        return None
    active = torch.stack([f.active for f in seen if f.active is not None]).any(0)
    return None if bool(active.all()) else active.to(torch.float64)
