"""Factors with one table for all rows: linear in their book's coefficients, of which each state takes but a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.evaluate import ALL, features, table
from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.point import Point

__all__ = ["Constant"]


@dataclass(frozen=True, eq=False)
class Constant:
    """What the states of such a factor take of its book: for a Categorical latent, one logarithm each.

    Attributes:
        factor: it.
        entries: positions among the coefficients, in one row, shape (K, J).
        values: what these are multiplied by, shape (K, J); ``None`` for ones.
        base: what its data's dependence on the state adds, shape (K,); ``None`` for nothing.
    """

    factor: TensorFactor
    entries: Tensor
    values: Tensor | None
    base: Tensor | None

    @classmethod
    def of(cls, factor: TensorFactor) -> Constant:
        """Find the features that are not zero."""
        whole = _features(factor)
        states, elements, width = whole.shape
        state, element, feature = whole.nonzero(as_tuple=True)
        many = torch.bincount(state, minlength=states)
        place = torch.arange(len(state)) - (many.cumsum(0) - many)[state]
        entries = torch.zeros(states, int(many.max()), dtype=torch.long)
        values = torch.zeros(entries.shape, dtype=torch.float64)
        entries[state, place] = factor.cell[0].expand(states, elements)[state, element] * width + feature
        values[state, place] = whole[state, element, feature]
        return cls(factor, entries, None if bool((values == 1.0).all()) else values, _base(factor, width))

    def table(self, point: Point) -> Tensor:
        """Log-densities without the base measure, shape (K,)."""
        own = point.coefficients[id(self.factor.book)].take(self.entries)
        total = (own if self.values is None else own * self.values).sum(1)
        return total if self.base is None else total + self.base

    def count(self, counts: Tensor, stats: dict[int, Tensor]) -> None:
        """Add expected features under the posterior of the states, shape (K,)."""
        own = counts.unsqueeze(1)
        own = own.expand(self.entries.shape) if self.values is None else own * self.values
        stats[id(self.factor.book)].put_(self.entries, own, accumulate=True)


def _features(factor: TensorFactor) -> Tensor:
    """Features and ones, zero under a mask, shape (K, E, S + 1)."""
    t = features(factor, ALL, torch.float64)[:, 0].movedim(0, -1)
    full = t.expand(factor.num_states, t.shape[1], t.shape[2])
    whole = torch.cat([full, torch.ones_like(full[..., :1])], -1)
    whole = whole if factor.mask is None else whole * factor.mask[0].unsqueeze(-1)
    return whole if factor.multiplicity is None else whole * factor.multiplicity.unsqueeze(-1)


def _base(factor: TensorFactor, width: int) -> Tensor | None:
    if factor.x.shape[1] == 1:
        return None  # the same for all states: it is no part of the table
    base = table(factor, torch.zeros(factor.book.size, width, dtype=torch.float64), ALL, {})[0]
    return base if bool(base.any()) else None
