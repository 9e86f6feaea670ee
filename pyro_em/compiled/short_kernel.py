"""Tables and expected statistics of short chains, compiled: from a book's coefficients and back to its cells."""

from __future__ import annotations

import numpy as np
from numba import njit

from pyro_em.chains.potentials import Array

__all__ = ["add_counts", "add_sums", "fill_emission", "fill_table"]

TILE = 128  # data at a time
NEVER = -1e29  # below it, a logarithm of zero in the families' terms


@njit(cache=True, nogil=True)
def fill_table(coefficients: Array, index: Array, values: Array, base: Array, out: Array) -> None:
    """out (n,) = base + the sum over the first axis of coefficients[index] * values, both (J, n); -inf where never."""
    for k in range(out.size):
        total = base[k]
        for j in range(index.shape[0]):
            total += coefficients[index[j, k]] * values[j, k]
        out[k] = -np.inf if total < NEVER else total  # NaN stays


@njit(cache=True, nogil=True)
def add_counts(counts: Array, index: Array, values: Array, stats: Array) -> None:
    """Add counts (n,) times values (J, n) to the statistics at index (J, n)."""
    for j in range(index.shape[0]):
        for k in range(counts.size):
            stats[index[j, k]] += counts[k] * values[j, k]


@njit(cache=True, nogil=True, fastmath={"contract"})
def fill_emission(coefficients: Array, index: Array, features: Array, out: Array) -> None:
    """out (N, S) = features (F, N)^T @ coefficients[index], index (F, S); -inf where never."""
    width, states = index.shape
    row = np.empty(TILE)
    for start in range(0, out.shape[0], TILE):
        count = min(TILE, out.shape[0] - start)
        for k in range(states):
            least = 0.0
            row[:] = 0.0
            for f in range(width):
                a, x = coefficients[index[f, k]], features[f, start : start + count]
                least = min(least, a)
                for r in range(count):
                    row[r] += a * x[r]
            for r in range(count):
                out[start + r, k] = -np.inf if least < NEVER and row[r] < NEVER else row[r]


# The order of sums over data is left to the compiler, which makes several at a time.
@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def add_sums(features: Array, weights: Array, index: Array, stats: Array) -> None:
    """Add features (F, N) @ weights (N, S) to the statistics at index (F, S)."""
    width, states = index.shape
    row = np.empty(TILE)
    for start in range(0, len(weights), TILE):
        count = min(TILE, len(weights) - start)
        for k in range(states):
            for r in range(count):
                row[r] = weights[start + r, k]
            for f in range(width):
                x, total = features[f, start : start + count], 0.0
                for r in range(count):
                    total += row[r] * x[r]
                stats[index[f, k]] += total
