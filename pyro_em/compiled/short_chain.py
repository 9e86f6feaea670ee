"""E-steps of short chains of the plainest form, on arrays: for few numbers, calls cost more than arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pyro_em.chains import filter_rows, smooth_rows
from pyro_em.compiled.constant import Constant
from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.point import AnyFactor, Point, Tally
from pyro_em.compiled.short_kernel import add_counts, add_sums, fill_emission, fill_table
from pyro_em.graph.line import Line

__all__ = ["ShortChain", "short_chain"]

MOST = 2**20  # multiplications of features and coefficients


@dataclass(frozen=True)
class _Picked:
    """A table of sums over a book's coefficients: of those at ``index`` times ``values``, both (J, n), and ``base``."""

    book: int
    index: np.ndarray
    values: np.ndarray
    base: np.ndarray

    @classmethod
    def of(cls, constant: Constant, shape: tuple[int, ...], turned: bool) -> _Picked:
        """The table of a constant factor, its states in this shape, or in the opposite order."""

        def arranged(t: Tensor) -> np.ndarray:
            own = t.reshape(*shape, -1).movedim(-1, 0)
            return (own.mT if turned else own).flatten(1).contiguous().numpy()

        ones = torch.ones(constant.entries.shape, dtype=torch.float64)
        base = ones[:, 0] * 0 if constant.base is None else constant.base
        values = ones if constant.values is None else constant.values
        return cls(id(constant.factor.book), arranged(constant.entries), arranged(values), arranged(base)[0])

    def table(self, coefficients: Mapping[int, np.ndarray]) -> np.ndarray:
        """Log-potentials, -inf where they cannot be."""
        out = np.empty(self.base.size)
        fill_table(coefficients[self.book], self.index, self.values, self.base, out)
        return out

    def count(self, counts: np.ndarray, stats: Mapping[int, np.ndarray]) -> None:
        """Add expected statistics under counts (n,)."""
        add_counts(counts, self.index, self.values, stats[self.book])


@dataclass(frozen=True, eq=False)
class ShortChain:
    """A chain with one matrix of transitions, features at every frame, and nothing else but a law of its first state.

    Attributes:
        shape: rows R, frames T, states S.
        initial, transition: tables.
        book: whose coefficients the features take.
        index: positions of these, shape (F, S).
        features: and ones for their constants, zero under a mask, shape (F, R * T).
        which, lengths, weights: as the passes take them.
    """

    shape: tuple[int, int, int]
    initial: tuple[_Picked, ...]
    transition: _Picked
    book: int
    index: np.ndarray
    features: np.ndarray
    which: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray

    def expect(self, point: Point, tally: Tally) -> tuple[float, float]:
        """Add expected statistics to the tally; the log evidence without base measures, and its rows' squares."""
        states, coefficients = self.shape[2], _flat(point.coefficients)
        transition = self.transition.table(coefficients).reshape(1, 1, states, states)
        given = (self._emission(coefficients), transition, self.which, self.lengths)
        found = filter_rows(*given)
        value = float(found.evidence @ self.weights)
        if value == -np.inf:
            return value, 0.0
        marginal, pairs = smooth_rows(found, *given, self.weights)
        stats = _flat(tally.stats)
        for table in self.initial:
            table.count(marginal[0, 0] if len(marginal) == 1 else marginal[:, 0].sum(0), stats)
        self.transition.count(pairs.reshape(-1), stats)
        add_sums(self.features, marginal.reshape(-1, states), self.index, stats[self.book])
        return value, float(found.evidence @ found.evidence)

    def _emission(self, coefficients: Mapping[int, np.ndarray]) -> np.ndarray:
        emission = np.empty(self.shape)
        fill_emission(coefficients[self.book], self.index, self.features, emission.reshape(-1, self.shape[2]))
        for table in self.initial:
            emission[:, 0] += table.table(coefficients)
        return emission


def _flat(tensors: Mapping[int, Tensor]) -> dict[int, np.ndarray]:
    """The numbers of contiguous tensors, in place."""
    return {key: tensor.view(-1).numpy() for key, tensor in tensors.items()}


def short_chain(
    line: Line,
    factors: Sequence[AnyFactor],
    constants: Mapping[int, Constant],
    kept: Mapping[int, Tensor],
    lengths: Tensor | None,
    weights: Tensor,
) -> ShortChain | None:
    """The chain as a short one; ``None`` where it is none.

    Args:
        line: the chain.
        factors: in its places.
        constants: those with one table for all rows, by position.
        kept: features of those that are a matrix product, by position.
        lengths, weights: of the rows.
    """
    places, frames = line.wiring.places, line.wiring.frames
    shape = frames.num_rows, len(frames.frames), frames.num_states
    crossing = [i for i, place in enumerate(places) if place.crosses]
    initial = [i for i in constants if i not in crossing]
    free = [i for i in range(len(factors)) if i not in constants]
    if len(crossing) != 1 or len(free) != 1 or not constants.keys() >= {*crossing} or line.wiring.num_transitions > 1:
        return None
    (at,), (cross,) = free, crossing
    if at not in kept or line.spans[at] != slice(0, shape[1]) or any(line.spans[i] != slice(0, 1) for i in initial):
        return None
    features = kept[at]
    if len(features) != shape[0] * shape[1] or features.dtype != torch.float64 or features.numel() * shape[2] > MOST:
        return None
    factor, sizes = cast(TensorFactor, factors[at]), (shape[2], shape[2])
    return ShortChain(
        shape,
        tuple(_Picked.of(constants[i], sizes[:1], False) for i in initial),
        _Picked.of(constants[cross], sizes, places[cross].axes[0][0] != 2),
        id(factor.book),
        torch.cat([factor.entries, factor.counted], 1).T.contiguous().numpy(),
        _with_counts(factor, features),
        line.wiring.which.numpy(),
        (torch.full(shape[:1], shape[1]) if lengths is None else lengths).numpy(),
        weights.numpy(),
    )


def _with_counts(factor: TensorFactor, features: Tensor) -> np.ndarray:
    """Features and what multiplies the constants of all elements, side by side."""
    width = factor.entries.shape[1]
    counts = features[:, width:] if factor.mask is not None else torch.ones(len(features), 1, dtype=features.dtype)
    whole = torch.cat([features[:, :width], counts.expand(-1, factor.counted.shape[1])], 1)
    return whole.T.contiguous().numpy()
