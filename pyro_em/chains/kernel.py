"""Forward-backward in scaled probabilities, compiled: fast, and exact for the rows it does not hand back.

Every frame is scaled to sum to one (Rabiner 1989, A tutorial on hidden Markov models, eq. 91-92). A state that
underflows on the way is lost for good, which may matter: where transitions forbid every other state later on, the lost
one carries the whole posterior. Two cases are safe:

- every entry of the matrices is above `DENSE`, relative to their largest: whatever follows can favour one state over
  another by at most 1 / DENSE, and what is lost is below 1e-308 / DENSE;
- no state that is reachable falls below what still multiplies with the smallest positive entry without underflow.

A row in neither case is marked in `redo` for :mod:`pyro_em.chains.log_kernel`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["backward_rows", "forward_rows", "scale_transitions"]

Array = NDArray[Any]

# 1e-308 / DENSE is what an underflow loses after a frame that surprises; over DENSE again, of what may yet come.
DENSE = 1e-120
# Far enough from 1e-308 that sums over time of its reciprocal stay finite.
TINY = 1e-260


@njit(cache=True, nogil=True)
def scale_transitions(transition: Array, steps: Array, shift: Array, floor: Array) -> None:
    """Fill `steps` (G, M, S, S) with exp(transition - shift), where shift (G, M) is each largest entry.

    `floor` (G,) is zero if no loss can matter, else what a reachable state must not fall below; infinite if a
    transition itself underflows.
    """
    groups, matrices, states, _ = transition.shape
    for g in range(groups):
        least, positive, lost = 1.0, 1.0, False
        for m in range(matrices):
            a = transition[g, m]
            top = a.max()
            # max() is NaN where an entry is, and so is all that follows; -inf alone needs a stand-in.
            shift[g, m] = 0.0 if top == -np.inf else top
            for i in range(states):
                for j in range(states):
                    x = math.exp(a[i, j] - shift[g, m])
                    steps[g, m, i, j] = x
                    least = min(least, x)
                    if x > 0.0:
                        positive = min(positive, x)
                    elif a[i, j] > -np.inf:
                        lost = True
        if lost or positive < TINY:
            floor[g] = np.inf
        else:
            floor[g] = 0.0 if least > DENSE else TINY / positive


@njit(cache=True, nogil=True)
def _multiply(x: Array, matrix: Array, out: Array) -> None:
    """out = x @ matrix, row by row of the matrix, four rows at a time."""
    states = x.size
    out[:] = 0.0
    done = states - states % 4
    for i in range(0, done, 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(states):
            out[j] += (x0 * matrix[i, j] + x1 * matrix[i + 1, j]) + (x2 * matrix[i + 2, j] + x3 * matrix[i + 3, j])
    for i in range(done, states):
        for j in range(states):
            out[j] += x[i] * matrix[i, j]


@njit(cache=True, nogil=True)
def _update(potential: Array, predicted: Array, alpha: Array) -> tuple[float, float]:
    """Multiply the predicted probabilities by exp(potential - top); returns the sum and top, the reachable maximum."""
    states = potential.size
    top = -np.inf
    for j in range(states):
        if predicted[j] > 0.0 and potential[j] > top:
            top = potential[j]
    if top == -np.inf:
        total = 0.0
        for j in range(states):
            alpha[j] = 0.0
            total += predicted[j] * (0.0 if potential[j] == -np.inf else potential[j])
        # A NaN among the potentials is no impossibility.
        return (np.nan if total != total else 0.0), 0.0
    total = 0.0
    for j in range(states):
        x = potential[j] - top
        # Only states that cannot be reached exceed the maximum.
        alpha[j] = predicted[j] * math.exp(0.0 if x > 0.0 else x)
        total += alpha[j]
    return total, top


@njit(cache=True, nogil=True)
def _has_lost(potential: Array, predicted: Array, alpha: Array, limit: float) -> bool:
    for j in range(alpha.size):  # noqa: SIM110 - numba compiles no generator
        if alpha[j] < limit and predicted[j] > 0.0 and potential[j] > -np.inf:
            return True
    return False


@njit(cache=True, nogil=True)
def _forward_row(
    emission: Array, length: int, steps: Array, shift: Array, floor: float, which: Array, alpha: Array, predicted: Array
) -> tuple[float, bool]:
    """Filter one row; returns its log evidence and whether it has to be redone."""
    states = alpha.shape[1]
    evidence, product = 0.0, 1.0
    for t in range(length):
        if t == 0:
            predicted[0] = 1.0
        else:
            _multiply(alpha[t - 1], steps[which[t - 1]], predicted[t])
            evidence += shift[which[t - 1]]
        total, top = _update(emission[t], predicted[t], alpha[t])
        if total == 0.0:
            alpha[t:] = 0.0
            predicted[t:] = 0.0
            return -np.inf, False
        if floor > 0.0 and _has_lost(emission[t], predicted[t], alpha[t], max(TINY, floor * total)):
            return 0.0, True
        scale = 1.0 / total
        for j in range(states):
            alpha[t, j] *= scale
        evidence += top
        # One logarithm for many frames.
        if total < 1e-100:
            evidence += math.log(total)
        else:
            product *= total
            if product < 1e-100 or product > 1e100:
                evidence += math.log(product)
                product = 1.0
    alpha[length:] = 0.0
    predicted[length:] = 0.0
    return evidence + math.log(product), False


@njit(cache=True, nogil=True)
def forward_rows(
    first: int,
    last: int,
    share: int,
    emission: Array,
    steps: Array,
    shift: Array,
    floor: Array,
    which: Array,
    lengths: Array,
    alpha: Array,
    predicted: Array,
    evidence: Array,
    redo: Array,
) -> None:
    """Filter the rows first..last - 1; `share` rows use one group."""
    for r in range(first, last):
        g = r // share
        if floor[g] == np.inf and lengths[r] > 1:
            redo[r] = True
            continue
        evidence[r], redo[r] = _forward_row(
            emission[r], lengths[r], steps[g], shift[g], floor[g], which, alpha[r], predicted[r]
        )


@njit(cache=True, nogil=True)
def _add_outer(x: Array, y: Array, out: Array) -> None:
    for i in range(x.size):
        xi = x[i]
        for j in range(y.size):
            out[i, j] += xi * y[j]


@njit(cache=True, nogil=True)
def _backward_row(
    weight: float,
    length: int,
    turned: Array,
    which: Array,
    alpha: Array,
    predicted: Array,
    marginal: Array,
    pairs: Array,
    beta: Array,
    v: Array,
) -> None:
    """Smooth one row; pairs (M, S, S) gains alpha_t(i) v_{t+1}(j), the posterior but for its transition."""
    states = beta.size
    beta[:] = 1.0
    for j in range(states):
        marginal[length - 1, j] = weight * alpha[length - 1, j]
    for t in range(length - 2, -1, -1):
        for j in range(states):
            p = predicted[t + 1, j]
            v[j] = beta[j] * alpha[t + 1, j] / p if p > 0.0 else 0.0
        _multiply(v, turned[which[t]], beta)
        for j in range(states):
            marginal[t, j] = weight * alpha[t, j]
        _add_outer(marginal[t], v, pairs[which[t]])
        for j in range(states):
            marginal[t, j] *= beta[j]


@njit(cache=True, nogil=True)
def backward_rows(
    first: int,
    last: int,
    share: int,
    turned: Array,
    which: Array,
    lengths: Array,
    alpha: Array,
    predicted: Array,
    evidence: Array,
    redo: Array,
    weights: Array,
    marginal: Array,
    pairs: Array,
) -> None:
    """Smooth the rows first..last - 1; `turned` is `steps` with from and to exchanged, pairs has shape (G, M, S, S)."""
    states = alpha.shape[2]
    beta, v = np.empty(states), np.empty(states)
    for r in range(first, last):
        length = lengths[r]
        if redo[r] or length == 0 or evidence[r] == -np.inf:
            marginal[r] = 0.0
            continue
        g = r // share
        _backward_row(weights[r], length, turned[g], which, alpha[r], predicted[r], marginal[r], pairs[g], beta, v)
        marginal[r, length:] = 0.0
