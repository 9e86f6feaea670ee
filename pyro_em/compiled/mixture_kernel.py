"""The E-step of a mixture in one pass, compiled: for few features and states, a product of matrices moves more numbers
than it multiplies.

States are the rows of every matrix, and a tile of data stays in the nearest cache from its features to its share of the
sums. Everything is computed in float64, whatever the data are kept in.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pyro_em.chains.potentials import LOG2_HIGH, LOG2_LOW, Array, bits_of, exponentiate, from_bits

__all__ = ["add_rows", "soften"]

ROOM = 4096  # numbers of a tile, which leave room for others in a cache of 48 KB
LEAST, MOST = 32, 128  # data of a tile
D3, D5, D7, D9, D11, D13, D15, D17, D19, D21 = (2.0 / n for n in range(3, 22, 2))
ROOT_HALF = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)


# The error model of numpy: a check of every division would make the loop a scalar one.
@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _logarithm(x: Array) -> None:
    """Replace every x >= 1 of a vector by log(x), within two units in the last place; infinity and NaN stay.

    log(x) = n log 2 + log(m) with m in [sqrt(1/2), sqrt(2)), and log(m) = 2 artanh(s), s = (m - 1) / (m + 1), by its
    series to s^21: the rest is below 3e-18 for |s| <= 0.172.
    """
    for i in range(x.size):
        y = x[i]
        bits = bits_of(y)
        n = (bits - ROOT_HALF) >> 52
        m = from_bits(bits - (n << 52))
        # Adding n to the last bits of 2^52 makes a float of it where processors cannot convert many at a time.
        exponent = from_bits(n + 0x4330000000000000) - 2.0**52
        s = (m - 1.0) / (m + 1.0)
        q = s * s
        p = D21
        p = p * q + D19
        p = p * q + D17
        p = p * q + D15
        p = p * q + D13
        p = p * q + D11
        p = p * q + D9
        p = p * q + D7
        p = p * q + D5
        p = p * q + D3
        p = 2.0 * s + s * (p * q)
        x[i] = exponent * LOG2_HIGH + (p + exponent * LOG2_LOW) if y < math.inf else y


@njit(cache=True, nogil=True, fastmath={"contract"})
def _gather(data: Array, origin: Array, powers: int, start: int, features: Array) -> None:
    """Features of a range of data, shape (F, count): the data about their origin, then squares of these."""
    width, count = data.shape[1], features.shape[1]
    for d in range(width):
        row, about = features[d], origin[d]
        for r in range(count):
            row[r] = data[start + r, d] - about
    if powers == 2:
        for d in range(width):
            row, square = features[d], features[width + d]
            for r in range(count):
                square[r] = row[r] * row[r]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _log_densities(features: Array, matrix: Array, offset: Array, logs: Array, top: Array) -> None:
    """logs = matrix @ features + offset, minus the largest entry of each datum, which is left in `top`."""
    states, count = logs.shape
    width = matrix.shape[1]
    for k in range(states):
        row = logs[k]
        row[:] = offset[k]
        f = 0
        while f + 1 < width:  # two features at a time: `row` is read and written once for both
            a, x = matrix[k, f], features[f]
            b, y = matrix[k, f + 1], features[f + 1]
            for r in range(count):
                row[r] += a * x[r] + b * y[r]
            f += 2
        if f < width:
            a, x = matrix[k, f], features[f]
            for r in range(count):
                row[r] += a * x[r]
        for r in range(count):
            top[r] = row[r] if k == 0 or row[r] > top[r] else top[r]
    for k in range(states):
        for r in range(count):
            logs[k, r] -= top[r]


# The order of sums over data is left to the compiler, which makes several at a time.
@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _add_posterior(features: Array, posterior: Array, scale: Array, sums: Array, counts: Array) -> None:
    states, count = posterior.shape
    for k in range(states):
        row, total = posterior[k], 0.0
        for r in range(count):
            row[r] *= scale[r]
            total += row[r]
        counts[k] += total
        for f in range(features.shape[0]):
            x, total = features[f], 0.0
            for r in range(count):
                total += row[r] * x[r]
            sums[k, f] += total


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _add_terms(terms: Array, weights: Array) -> tuple[float, float]:
    evidence, squares = 0.0, 0.0
    for r in range(terms.size):
        squares += terms[r] * terms[r]
        evidence += terms[r] * weights[r]
    return evidence, squares


@njit(cache=True, nogil=True, error_model="numpy")
def _close(top: Array, total: Array, weights: Array, start: int, terms: Array, scale: Array) -> tuple[float, float]:
    """Log evidence of a tile from `start` on, and its squared terms; `scale` then makes exponentials posteriors."""
    terms[:] = total
    _logarithm(terms)
    for r in range(terms.size):
        terms[r] += top[r]
        scale[r] = weights[start + r] if weights.size > 1 else weights[0]
    found = _add_terms(terms, scale)
    for r in range(terms.size):
        scale[r] /= total[r]
    return found


@njit(cache=True, nogil=True, fastmath={"contract"})
def _exponentials(logs: Array, start: int, top: Array, total: Array) -> None:
    """Replace a tile of log densities by exponentials of them less the largest of each datum, and add these up."""
    stop = start + top.size
    for k in range(len(logs)):
        row = logs[k, start:stop]
        for r in range(top.size):
            top[r] = row[r] if k == 0 or row[r] > top[r] else top[r]
    total[:] = 0.0
    for k in range(len(logs)):
        row = logs[k, start:stop]
        for r in range(top.size):
            row[r] -= top[r]
        exponentiate(row)
        for r in range(top.size):
            total[r] += row[r]


@njit(cache=True, nogil=True)
def soften(logs: Array, weights: Array) -> tuple[float, float]:
    """Replace log densities (K, n) by weighted posteriors; log evidence and its squared terms.

    `weights` has shape (n,), or (1,) where all data count alike.
    """
    states, num = logs.shape
    top, total, terms, scale = np.empty(MOST), np.empty(MOST), np.empty(MOST), np.empty(MOST)
    evidence, squares = 0.0, 0.0
    for start in range(0, num, MOST):
        count = min(MOST, num - start)
        _exponentials(logs, start, top[:count], total[:count])
        own, square = _close(top[:count], total[:count], weights, start, terms[:count], scale[:count])
        evidence, squares = evidence + own, squares + square
        for k in range(states):
            for r in range(count):
                logs[k, start + r] *= scale[r]
    return evidence, squares


@njit(cache=True, nogil=True, error_model="numpy")
def add_rows(
    data: Array,
    origin: Array,
    powers: int,
    first: int,
    last: int,
    matrix: Array,
    offset: Array,
    weights: Array,
    sums: Array,
    counts: Array,
) -> tuple[float, float]:
    """Add expected features (K, F) and counts (K,) of a range of data in place; log evidence and its squared terms.

    `data` has shape (n, D), `origin` (D,); features are their first `powers` powers, F = D or 2 D of them. `matrix` is
    (K, F), `offset` (K,), `weights` (n,), or (1,) where all data count alike.
    """
    states, width = matrix.shape
    tile = max(LEAST, min(MOST, ROOM // (states + width) // 8 * 8))
    room, seen = np.empty(states * tile), np.empty(width * tile)
    top, total, terms, scale = np.empty(tile), np.empty(tile), np.empty(tile), np.empty(tile)
    evidence, squares = 0.0, 0.0
    for start in range(first, last, tile):
        count = min(tile, last - start)
        features = seen[: width * count].reshape(width, count)
        posterior = room[: states * count].reshape(states, count)
        _gather(data, origin, powers, start, features)
        _log_densities(features, matrix, offset, posterior, top[:count])
        exponentiate(room[: states * count])
        total[:] = 0.0
        for k in range(states):
            for r in range(count):
                total[r] += posterior[k, r]
        own, square = _close(top[:count], total[:count], weights, start, terms[:count], scale[:count])
        evidence, squares = evidence + own, squares + square
        _add_posterior(features, posterior, scale[:count], sums, counts)
    return evidence, squares
