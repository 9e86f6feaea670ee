"""One point in parameter space, as the factors see it, and the tally an E-step keeps there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_em.compiled import evaluate
from pyro_em.compiled.cells import Book
from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.sparse import SparseFactor
from pyro_em.probing import Coordinates

__all__ = ["AnyFactor", "Point", "Tally", "Values"]

AnyFactor = TensorFactor | ElementFactor | SparseFactor
Values = Mapping[int, dict[str, Tensor]]  # by ``id`` of the book, each argument's distinct values


@dataclass(frozen=True)
class Point:
    """theta, and what each book makes of it.

    Attributes:
        theta: the parameters.
        values: by ``id`` of the book, each argument's distinct values.
        coefficients: by ``id`` of the book, shape (C, S + 1).
        args: by ``id`` of the book, arguments of its cells.
    """

    theta: Tensor
    values: Values
    coefficients: dict[int, Tensor]
    args: dict[int, dict[str, Tensor]]

    @classmethod
    def at(cls, theta: Tensor, books: Sequence[Book], coordinates: Coordinates, known: Values | None = None) -> Point:
        """The point at theta; ``known`` are values there of some of the books."""
        known = known or {}
        values = {id(book): known.get(id(book)) or book.values(coordinates, theta) for book in books}
        args = {id(book): book.spread(values[id(book)]) for book in books}
        coefficients = {id(book): book.family.coefficients(**args[id(book)]).contiguous() for book in books}
        return cls(theta, values, coefficients, args)

    def table(self, factor: AnyFactor, rows: slice) -> Tensor:
        """Log-densities of a range of rows, shape (n or 1, K or 1)."""
        if isinstance(factor, ElementFactor):
            return factor.table(self.theta, rows)
        if isinstance(factor, SparseFactor):
            return factor.table(self.coefficients[id(factor.book)], rows)
        return evaluate.table(factor, self.coefficients[id(factor.book)], rows, self.args[id(factor.book)])


@dataclass
class Tally:
    """Expected statistics so far.

    Attributes:
        stats: by ``id`` of the book, shape (C, S + 1).
        weights: posteriors of the states of element factors, by site, in ranges of rows, each of shape (n, K).
    """

    point: Point
    stats: dict[int, Tensor]
    weights: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, point: Point) -> Tally:
        """Nothing yet."""
        return cls(point, {key: torch.zeros_like(c) for key, c in point.coefficients.items()})

    def add(self, factor: AnyFactor, weights: Tensor, rows: slice) -> None:
        """Count a factor under the posterior of its states, shape (n, K), for a range of rows."""
        if isinstance(factor, ElementFactor):
            self.weights.setdefault(factor.name, []).append(weights)
            return
        key = id(factor.book)
        if isinstance(factor, SparseFactor):
            factor.add_stats(weights, self.stats[key], rows)
            return
        evaluate.add_stats(factor, weights, self.stats[key], rows, self.point.args[key])
