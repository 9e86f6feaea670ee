"""Arguments that cells share in different ways, as one problem of Newton's method: one rate, and a shape of each state.

In turn they would creep along a ridge, which a Gamma, a Beta and a NegativeBinomial have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_em.compiled.cells import Book
from pyro_em.compiled.ownership import Block
from pyro_em.compiled.priors import Prior, log_prior
from pyro_em.families import Argument
from pyro_em.families.coupled import Elements, Reach, newton_coupled
from pyro_em.families.newton import NEGLIGIBLE
from pyro_em.probing import LINKS, Coordinates

__all__ = ["Shared", "coordinates_of", "within"]


def coordinates_of(argument: Argument, values: Tensor) -> Tensor:
    """Values of an argument without their bounds."""
    return within(biject_to(argument.domain).inv(values))


def within(coordinates: Tensor) -> Tensor:
    """Coordinates of values at a bound are infinite: these, as far from it as arithmetic can tell."""
    return coordinates.nan_to_num(0.0).clamp(-700.0, 700.0)


@dataclass(frozen=True)
class Shared:
    """The cells of a book.

    Attributes:
        book: whose cells.
        stats: expected features and counts of each, shape (C, S + 1).
        forms: the arguments that move.
        moves: which of their values move, by argument, shape (G,).
        values: all arguments at present, shape (G,).
        priors: of the parameters behind them, by argument.
        coordinates: of all parameters.
    """

    book: Book
    stats: Tensor
    forms: tuple[Argument, ...]
    moves: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    priors: Mapping[str, Mapping[str, Prior]]
    coordinates: Coordinates

    @classmethod
    def of(
        cls,
        book: Book,
        blocks: Sequence[Block],
        stats: Tensor,
        values: Mapping[str, Tensor],
        coordinates: Coordinates,
    ) -> Shared:
        """The values of some blocks that are free and that some datum speaks of."""
        moves = {}
        for block in blocks:
            cells = book.cells(block.argument, stats, values, None)
            counts = cells.pool(stats[:, -1])
            moves[block.argument] = block.free & ((counts > NEGLIGIBLE) | bool(block.priors))
        forms = tuple(a for a in book.family.args if a.name in moves)
        priors = {b.argument: b.priors for b in blocks if b.priors}
        return cls(book, stats, forms, moves, values, priors, coordinates)

    def maximise(self, ceilings: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The arguments that move, at the maximum of the expected log-likelihood, and priors, over all of them.

        Args:
            ceilings: by argument, shape (G,): how far its values may go.
        """
        start = torch.cat([coordinates_of(a, self.values[a.name])[self.moves[a.name]] for a in self.forms])
        sizes = [int(self.moves[a.name].sum()) for a in self.forms]
        each = list(zip(self.forms, sizes, strict=True))
        top = torch.cat([torch.full((n,), math.log(a.largest), dtype=start.dtype) for a, n in each])
        if ceilings is not None:
            own = [
                ceilings[a.name][self.moves[a.name]] if a.name in ceilings else top.new_full((n,), torch.inf)
                for a, n in each
            ]
            top = top.minimum(torch.cat(own).log())
        elements = Elements(self.book.family, self.stats, self._reaches(sizes))
        free = torch.zeros(len(start), dtype=torch.bool)
        prior = self._log_prior if self.priors else None
        return self._written(newton_coupled(lambda: (elements,), start, free, top, prior=prior))

    def _written(self, at: Tensor) -> dict[str, Tensor]:
        """The arguments at a point; differentiable."""
        found, parts = {}, at.split([int(self.moves[a.name].sum()) for a in self.forms])
        for a, part in zip(self.forms, parts, strict=True):
            value, moves, old = biject_to(a.domain)(part), self.moves[a.name], self.values[a.name]
            found[a.name] = old.masked_scatter(moves, torch.where(torch.isfinite(value), value, old[moves]))
        return found

    def _log_prior(self, at: Tensor) -> Tensor:
        """Of the parameters behind the arguments at a point, in nats."""
        total, size = at.new_zeros(()), len(self.coordinates.owner())
        for name, value in self._written(at).items():
            priors, rows = self.priors.get(name, {}), self.book.rows[name]
            theta = at.new_zeros(size)
            inside = rows < size
            found = LINKS[self.book.links[name]].inverse(value[inside])
            total = total + log_prior(priors, self.coordinates, theta.index_put((rows[inside],), found))
        return total

    def _reaches(self, sizes: Sequence[int]) -> dict[str, Reach]:
        place, at = {}, 0
        for a, size in zip(self.forms, sizes, strict=True):
            index = torch.full(self.moves[a.name].shape, -1)
            index[self.moves[a.name]] = at + torch.arange(size)
            place[a.name], at = index, at + size
        found = {}
        for a in self.book.family.args:
            group, chart = self.book.groups[a.name], biject_to(a.domain)
            index = place.get(a.name, torch.full((len(self.values[a.name]),), -1))
            found[a.name] = Reach(chart, chart.inv(self.values[a.name])[group], index=index[group])
        return found
