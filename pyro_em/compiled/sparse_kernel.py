"""Products with counts in compressed rows, compiled: the states of one category lie side by side in memory."""

from __future__ import annotations

from numba import njit

from pyro_em.chains.potentials import Array

__all__ = ["add_transposed", "multiply_rows"]


@njit(cache=True, nogil=True, fastmath={"contract"})
def multiply_rows(
    first: int, starts: Array, columns: Array, counts: Array, matrix: Array, offset: Array, out: Array
) -> None:
    """out = x @ matrix + offset for as many rows of x as `out` (n, K) has, from row `first` on."""
    for r in range(out.shape[0]):
        row, j, stop = out[r], starts[first + r], starts[first + r + 1]
        row[:] = offset
        while j + 4 <= stop:  # `row` is read and written once for four entries
            a, b, c, d = matrix[columns[j]], matrix[columns[j + 1]], matrix[columns[j + 2]], matrix[columns[j + 3]]
            p, q, s, t = counts[j], counts[j + 1], counts[j + 2], counts[j + 3]
            for k in range(row.size):
                row[k] += (p * a[k] + q * b[k]) + (s * c[k] + t * d[k])
            j += 4
        while j < stop:
            own, count = matrix[columns[j]], counts[j]
            for k in range(row.size):
                row[k] += count * own[k]
            j += 1


@njit(cache=True, nogil=True, fastmath={"contract"})
def add_transposed(first: int, starts: Array, columns: Array, counts: Array, weights: Array, sums: Array) -> None:
    """sums += x^T @ weights for as many rows of x as `weights` (n, K) has, from row `first` on."""
    for r in range(weights.shape[0]):
        row = weights[r]
        for j in range(starts[first + r], starts[first + r + 1]):
            own, count = sums[columns[j]], counts[j]
            for k in range(row.size):
                own[k] += count * row[k]
