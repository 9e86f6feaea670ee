"""E-steps of chains: potentials of all times at once, one forward-backward pass, and its gradient as the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import threshold

from pyro_em.compiled.constant import Constant
from pyro_em.compiled.desk import Desk
from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.evaluate import ALL
from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.flat import Flat
from pyro_em.compiled.heard import Heard, hear
from pyro_em.compiled.point import AnyFactor, Point, Tally
from pyro_em.compiled.short_chain import ShortChain, short_chain
from pyro_em.graph.factor import row_weights
from pyro_em.graph.line import Line, line_of
from pyro_em.graph.wiring import Place, Wiring, wire
from pyro_em.probing import Stack

__all__ = ["Chain"]

BLOCK = 2**18  # entries of the features of one block
KEEP = 2**26  # bytes of features that are kept instead of being made anew


@dataclass(frozen=True, eq=False)
class Chain:
    """Stacks of sites in the frames of one chain.

    Attributes:
        factors: the stacks.
        wiring: how their tables become those of the chain.
        flats: for each factor, itself as a matrix product, if it is one.
        heard: on which frames data bear.
        weights: of the rows, shape (R,); ``None`` for ones.
        scale: of the whole.
        kept: features by position of the factor, where there is room to keep them.
    """

    factors: tuple[AnyFactor, ...]
    wiring: Wiring
    flats: tuple[Flat | None, ...]
    heard: Heard
    weights: Tensor | None
    scale: float
    kept: dict[int, Tensor]

    @classmethod
    def of(cls, factors: Sequence[AnyFactor], plate_weights: Mapping[str, Tensor], scale: float) -> Chain:
        """Wire the stacks of a chain."""
        frames = stack_of(factors[0]).frames
        heard = hear(factors, frames)
        places = [Place(stack_of(f).axes, stack_of(f).at, _is_alike(f, i, heard)) for i, f in enumerate(factors)]
        flats = [Flat.of([f]) if isinstance(f, TensorFactor) and f.is_dense else None for f in factors]
        weights = row_weights(frames.plates, plate_weights)
        kept = {
            i: flat.features(ALL, Desk(flat.dtype))
            for i, flat in enumerate(flats)
            if flat is not None and flat.width * factors[i].num_rows * flat.dtype.itemsize <= KEEP
        }
        return cls(tuple(factors), wire(frames, places), tuple(flats), heard, weights, scale, kept)

    def expect(self, point: Point, tally: Tally) -> tuple[float, float]:
        """Add expected statistics to the tally; the log evidence without base measures, and its spread."""
        if self._short is not None:
            value, squares = self._short.expect(point, tally)
            return value, squares**0.5 * self.scale
        potentials = [self._over_rows(i, self._table(i, point)) for i in range(len(self.factors))]
        rows, found = self._way.smooth(potentials, self._row_weights, self.heard.lengths)
        value = float(rows @ self._row_weights)
        if value == -torch.inf:
            return value, 0.0
        for i, weights in enumerate(found):
            self._count(i, weights, tally)
        return value, float(rows @ rows) ** 0.5 * self.scale

    @property
    def is_direct(self) -> bool:
        """Whether its E-step takes no gradients."""
        return isinstance(self._way, Line)

    @cached_property
    def _way(self) -> Line | Wiring:
        """What smooths it."""
        return line_of(self.wiring) or self.wiring

    @cached_property
    def _short(self) -> ShortChain | None:
        """The chain where it is a short one."""
        if not isinstance(self._way, Line) or any(flags is not None for flags in self.heard.flags):
            return None
        return short_chain(self._way, self.factors, self._constants, self.kept, self.heard.lengths, self._row_weights)

    @cached_property
    def _row_weights(self) -> Tensor:
        """How often each row counts, with the scale, shape (R,)."""
        ones = torch.ones(self.wiring.frames.num_rows, dtype=torch.float64)
        return self.scale * (ones if self.weights is None else self.weights)

    @cached_property
    def _constants(self) -> dict[int, Constant]:
        """Factors with one table for all rows, by position."""
        cellular = [(i, f) for i, f in enumerate(self.factors) if isinstance(f, TensorFactor) and not f.is_augmented]
        return {i: Constant.of(f) for i, f in cellular if f.is_constant and self.flats[i] is None}

    def _table(self, i: int, point: Point) -> Tensor:
        """Log-densities of a stack, shape (rows or 1, K)."""
        factor, flat = self.factors[i], self.flats[i]
        if i in self._constants:
            return threshold(self._constants[i].table(point), -1e29, -torch.inf).unsqueeze(0)
        if flat is None:
            table = point.table(factor, ALL)
            rows = factor.num_rows if isinstance(factor, ElementFactor) else len(table)
            return torch.where(table < -1e29, -torch.inf, table).expand(rows, factor.num_states)
        matrix, offset = flat.coefficients(point, factor.num_states)
        matrix, offset = matrix.to(flat.dtype), offset.clamp_min(-1e30).to(flat.dtype)
        if i in self.kept:
            table = torch.addmm(offset.T, self.kept[i], matrix.T)
        else:
            desk = Desk(flat.dtype)
            table = torch.cat([torch.addmm(offset.T, flat.features(r, desk), matrix.T) for r in self._blocks(i)])
        return threshold(table, -1e29, -torch.inf, inplace=True).to(torch.float64)

    def _blocks(self, i: int) -> list[slice]:
        flat, count = self.flats[i], self.factors[i].num_rows
        step = max(512, BLOCK // max(1, flat.width if flat is not None else 1))
        return [slice(a, min(a + step, count)) for a in range(0, count, step)]

    def _over_rows(self, i: int, table: Tensor) -> Tensor:
        """A table as a potential of its place: shape (R or 1, n or 1, *scope)."""
        factor = self.factors[i]
        rows = (1, 1) if table.shape[0] == 1 else self._rows(factor)
        table = table.reshape(*rows, *(v.size for v in factor.scope))
        if self.heard.flags[i] is None:
            return table
        # where data bear on some rows and frames only, these must be told apart
        return table.expand(self.wiring.frames.num_rows, len(stack_of(factor).at), *table.shape[2:])

    def _rows(self, factor: AnyFactor) -> tuple[int, int]:
        """How a factor's rows are made up: R or 1, n or 1."""
        stack = stack_of(factor)
        times = len(stack.at) if stack.time in factor.plates else 1
        return factor.num_rows // times, times

    def _count(self, i: int, weights: Tensor, tally: Tally) -> None:
        """Add the expected statistics of one stack under the posterior of its states, (R or 1, n or 1, *scope)."""
        factor, flat, flags = self.factors[i], self.flats[i], self.heard.flags[i]
        if flags is not None:
            weights = weights * flags.reshape(*flags.shape, *[1] * len(factor.scope))
            alike = [axis for axis, size in enumerate(self._rows(factor)) if size == 1]
            weights = weights.sum(alike) if alike else weights
        weights = weights.reshape(-1, factor.num_states)
        if i in self._constants:
            self._constants[i].count(weights.sum(0), tally.stats)
            return
        if flat is None:
            tally.add(factor, weights, ALL)
            return
        counts = weights.sum(0)
        own = weights.to(flat.dtype)
        if i in self.kept:
            sums = (own.T @ self.kept[i]).to(torch.float64)
        else:
            desk, sums = Desk(flat.dtype), torch.zeros(own.shape[1], flat.width, dtype=torch.float64)
            for r in self._blocks(i):
                sums += own[r].T @ flat.features(r, desk)
        flat.collect(sums, counts, tally.stats)


def stack_of(factor: AnyFactor) -> Stack:
    """Where a stacked factor sits."""
    assert factor.stack is not None
    return factor.stack


def _is_alike(factor: AnyFactor, i: int, heard: Heard) -> bool:
    """Whether one table serves all frames of a stack."""
    if heard.flags[i] is not None:
        return False
    by_row = isinstance(factor, ElementFactor) or not factor.is_constant
    return stack_of(factor).time not in factor.plates or not by_row
