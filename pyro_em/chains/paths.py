"""Single paths through a chain, compiled: the best one, and draws from the posterior."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pyro_em.chains.potentials import Array

__all__ = ["sample_rows", "viterbi_rows"]


@njit(cache=True, nogil=True)
def viterbi_rows(
    first: int,
    last: int,
    share: int,
    emission: Array,
    transition: Array,
    which: Array,
    lengths: Array,
    states: Array,
    score: Array,
) -> None:
    """Best paths (R, T), which are zero on entry, and their log-potentials (R,) of the rows first..last - 1."""
    frames, size = emission.shape[1:]
    source = np.empty((frames, size), np.int32)
    delta, best = np.empty(size), np.empty(size)
    for r in range(first, last):
        length, total = lengths[r], 0.0
        for t in range(length):
            if t == 0:
                delta[:] = emission[r, 0]
            else:
                _maximise(delta, transition[r // share, which[t - 1]], best, source[t])
                for j in range(size):
                    delta[j] = best[j] + emission[r, t, j]
            # Small numbers keep their digits: what the best path has so far is carried apart.
            top = delta.max()
            total += top
            if top == -np.inf:
                break
            delta -= top
        score[r] = total
        if total > -np.inf and length > 0:
            states[r, length - 1] = np.argmax(delta)
            for t in range(length - 1, 0, -1):
                states[r, t - 1] = source[t, states[r, t]]


@njit(cache=True, nogil=True)
def _maximise(delta: Array, matrix: Array, best: Array, source: Array) -> None:
    best[:] = -np.inf
    source[:] = 0
    for i in range(delta.size):
        for j in range(delta.size):
            x = delta[i] + matrix[i, j]
            if x > best[j]:
                best[j] = x
                source[j] = i


@njit(cache=True, nogil=True)
def _draw(weights: Array, uniform: float) -> int:
    """Index drawn in proportion to the weights by inversion; never one of weight zero."""
    threshold = uniform * weights.sum()
    total, drawn = 0.0, 0
    for i in range(weights.size):
        if weights[i] > 0.0:
            total += weights[i]
            drawn = i
            if total > threshold:
                break
    return drawn


@njit(cache=True, nogil=True)
def _log_weights(log_alpha: Array, matrix: Array, to: int, weights: Array) -> None:
    top = -np.inf
    for i in range(weights.size):
        weights[i] = log_alpha[i] + matrix[i, to]
        top = max(top, weights[i])
    for i in range(weights.size):
        weights[i] = math.exp(weights[i] - top)


@njit(cache=True, nogil=True)
def sample_rows(
    share: int,
    transition: Array,
    steps: Array,
    which: Array,
    lengths: Array,
    alpha: Array,
    log_row: Array,
    log_alpha: Array,
    evidence: Array,
    uniforms: Array,
    paths: Array,
) -> None:
    """Draw paths (n, R, T), zero on entry, backwards from the last frame (Scott 2002).

    log_row (R,) is the row's place in log_alpha, or -1 where alpha serves.
    """
    draws, rows, _ = uniforms.shape
    weights = np.empty(alpha.shape[2])
    for r in range(rows):
        length, g = lengths[r], r // share
        if length == 0 or evidence[r] == -np.inf:
            continue
        for n in range(draws):
            z = _draw(alpha[r, length - 1], uniforms[n, r, length - 1])
            paths[n, r, length - 1] = z
            for t in range(length - 2, -1, -1):
                if log_row[r] >= 0:
                    _log_weights(log_alpha[log_row[r], t], transition[g, which[t]], z, weights)
                else:
                    for i in range(weights.size):
                        weights[i] = alpha[r, t, i] * steps[g, which[t], i, z]
                z = _draw(weights, uniforms[n, r, t])
                paths[n, r, t] = z
