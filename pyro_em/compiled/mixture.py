"""E-steps of mixtures: one latent per datum, all data in one pass over blocks of rows that fit the cache.

Per block: log-densities are one matrix product of coefficients and features, posteriors a softmax over states, expected
statistics the transposed product. States are the rows of every matrix, so that sums over them run along memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_em.compiled.constant import Constant
from pyro_em.compiled.desk import Desk
from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.flat import Flat
from pyro_em.compiled.mixture_kernel import soften
from pyro_em.compiled.point import AnyFactor, Point, Tally
from pyro_em.compiled.sweep import KEEP, Sweep

__all__ = ["Mixture", "MixtureTotals"]

BLOCK = 2**18  # entries of the features of one block: two megabytes in float64
ONES = torch.ones(1, dtype=torch.float64)
UNDERFLOW = -60.0  # exponentials below this are slow in float32, and beyond its precision


@dataclass(frozen=True)
class MixtureTotals:
    """Sums over the data: log evidence without base measures, and of its squared terms."""

    log_evidence: float
    squares: float


@dataclass(frozen=True, eq=False)
class Mixture:
    """Factors that share one latent and its plates.

    Attributes:
        flat: factors whose table is a matrix product, computed in its precision.
        constants: factors with one table for all rows.
        general: the others.
        weights: of the rows, zero where no datum informs; ``None`` for ones.
        scale: of the whole.
        num_rows: number of data n.
        blocks: the ranges of rows that are taken at a time.
        kept: features of each block, shape (rows, S * E), where there is room to keep them.
        sweep: one compiled pass over all data instead of blocks, where that is faster.
    """

    flat: Flat
    constants: tuple[Constant, ...]
    general: tuple[AnyFactor, ...]
    weights: Tensor | None
    scale: float
    num_rows: int
    blocks: tuple[slice, ...]
    kept: tuple[Tensor, ...]
    sweep: Sweep | None = None

    @classmethod
    def of(cls, factors: Sequence[AnyFactor], weights: Tensor | None, scale: float) -> Mixture:
        """Sort the factors, and keep their features where there is room."""
        cellular = [f for f in factors if isinstance(f, TensorFactor)]
        flat = Flat.of([f for f in cellular if f.is_dense])
        constant = tuple(f for f in cellular if not f.is_dense and f.is_constant and not f.is_augmented)
        general = tuple(f for f in factors if f not in flat.factors and f not in constant)
        num_rows = factors[0].num_rows
        by_row = [f for f in general if f.x.layout is torch.strided]
        width = flat.width + max((f.num_states * f.x[0].numel() for f in by_row), default=0)
        step = max(512, min(16384, BLOCK // max(width, factors[0].num_states, 1)))
        blocks = tuple(slice(a, min(a + step, num_rows)) for a in range(0, num_rows, step))
        constants = tuple(Constant.of(f) for f in constant)
        self = cls(flat, constants, general, weights, scale, num_rows, blocks, ())
        sweep = None if general else Sweep.of(flat, num_rows)
        if sweep is not None or width * num_rows * flat.dtype.itemsize > KEEP:
            return replace(self, sweep=sweep)
        return replace(self, kept=tuple(flat.features(rows, Desk(flat.dtype)) for rows in blocks))

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return self.flat.dtype

    def expect(self, point: Point, tally: Tally) -> MixtureTotals:
        """One pass: add expected statistics to the tally and return the totals."""
        states = (*self.flat.factors, *(c.factor for c in self.constants), *self.general)[0].num_states
        matrix, offset = self._coefficients(point, states)
        sums = torch.zeros_like(matrix)
        counts = torch.zeros(states, dtype=torch.float64)
        if self.sweep is None:
            totals = self._by_blocks(matrix, offset, sums, counts, point, tally)
        else:
            weights = ONES if self.weights is None else self.weights
            totals = MixtureTotals(*self.sweep.add(matrix, offset.squeeze(1), weights, sums, counts))
        if self.scale != 1.0:
            sums, counts = sums * self.scale, counts * self.scale
        self._collect(sums, counts, tally.stats)
        return MixtureTotals(totals.log_evidence * self.scale, totals.squares)

    def _by_blocks(
        self, matrix: Tensor, offset: Tensor, sums: Tensor, counts: Tensor, point: Point, tally: Tally
    ) -> MixtureTotals:
        """Add expected features to ``sums`` and counts to ``counts``, block after block."""
        matrix, offset = matrix.to(self.dtype), offset.to(self.dtype)
        evidence = squares = 0.0
        clamp = self.dtype == torch.float32 and float(matrix.min() if matrix.numel() else 0.0) > -1e29
        desk = Desk(self.dtype)
        for i, rows in enumerate(self.blocks):
            block = self.kept[i] if self.kept else self.flat.features(rows, desk)
            logs = (
                torch.addmm(offset, matrix, block.T) if self.flat.factors else offset.repeat(1, rows.stop - rows.start)
            )
            for f in self.general:
                logs += point.table(f, rows).T.to(self.dtype)
            weights = ONES if self.weights is None else self.weights[rows]
            posterior, own, square = _softened(logs, weights, clamp)
            evidence, squares = evidence + own, squares + square
            if self.flat.factors:
                sums += posterior @ block
            counts += posterior.sum(1)
            for f in self.general:
                shares = posterior.T.to(torch.float64)
                tally.add(f, shares if self.scale == 1.0 else shares * self.scale, rows)
        return MixtureTotals(evidence, squares)

    def _coefficients(self, point: Point, states: int) -> tuple[Tensor, Tensor]:
        matrix, offset = self.flat.coefficients(point, states)
        for c in self.constants:
            offset = offset + c.table(point).unsqueeze(1)
        return matrix, offset.clamp_min(-1e30)

    def _collect(self, sums: Tensor, counts: Tensor, stats: dict[int, Tensor]) -> None:
        """Hand the sums of all blocks to the cells they belong to."""
        self.flat.collect(sums, counts, stats)
        for c in self.constants:
            c.count(counts, stats)


def _softened(logs: Tensor, weights: Tensor, clamp: bool) -> tuple[Tensor, float, float]:
    """Weighted posteriors (K, rows) in place of log densities, log evidence, and its squared terms.

    Args:
        weights: of the rows, or one of all, float64.
        clamp: whether to keep exponentials from underflow.
    """
    if logs.dtype == torch.float64:
        return logs, *soften(logs.numpy(), weights.numpy())
    top = logs.amax(0)
    posterior = logs.sub_(top)
    posterior = (posterior.clamp_min_(UNDERFLOW) if clamp else posterior).exp_()
    total = posterior.sum(0)
    terms = total.log().add_(top).to(torch.float64)
    posterior *= weights.to(logs.dtype) / total
    return posterior, float((terms * weights).sum()), float(terms.dot(terms))
