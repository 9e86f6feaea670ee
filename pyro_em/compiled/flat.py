"""Factors over the same rows and states whose tables are one matrix product of coefficients and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.desk import Desk
from pyro_em.compiled.evaluate import dense
from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.point import Point

__all__ = ["Flat"]


@dataclass(frozen=True)
class Flat:
    """Dense factors side by side: their features are columns of one matrix.

    Attributes:
        factors: all of one scope.
        dtype: what matrix products are computed in.
    """

    factors: tuple[TensorFactor, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, factors: Sequence[TensorFactor]) -> Flat:
        """In single precision where all data are."""
        single = bool(factors) and all(f.x.dtype == torch.float32 for f in factors)
        return cls(tuple(factors), torch.float32 if single else torch.float64)

    @property
    def width(self) -> int:
        """Number of columns."""
        return sum(f.width for f in self.factors)

    def features(self, rows: slice, desk: Desk) -> Tensor:
        """Features of a range of rows, shape (rows, all S * E), with masks as counts behind."""
        parts = [desk.features(f, rows) for f in self.factors]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1) if parts else torch.zeros(0, 0)

    def coefficients(self, point: Point, states: int) -> tuple[Tensor, Tensor]:
        """What multiplies the features, float64, shape (K, all S * E), and what is added, shape (K, 1)."""
        if not self.factors:
            return torch.zeros(states, 0), torch.zeros(states, 1, dtype=torch.float64)
        first, *others = (dense(f, point.coefficients[id(f.book)]) for f in self.factors)
        if not others:
            return first.matrix, first.constant
        parts = (first, *others)
        return torch.cat([p.matrix for p in parts], 1), torch.stack([p.constant for p in parts]).sum(0)

    def collect(self, sums: Tensor, counts: Tensor, stats: dict[int, Tensor]) -> None:
        """Hand expected features (K, all S * E) and counts (K,) to the cells they belong to."""
        parts = sums.split([f.width for f in self.factors], 1) if len(self.factors) > 1 else [sums]
        for f, part in zip(self.factors, parts, strict=False):
            own, size = stats[id(f.book)], f.entries.shape[1]
            count = counts.unsqueeze(1) if f.mask is None else part[:, size:]
            own.put_(f.entries, part if f.mask is None else part[:, :size], accumulate=True)
            own.put_(f.counted, count.expand(f.counted.shape), accumulate=True)
