"""Forward-backward in scaled probabilities, compiled: fast, and exact for the rows it does not hand back.

Every frame is scaled to sum to one (Rabiner 1989, A tutorial on hidden Markov models, eq. 91-92). A state that
underflows on the way is lost for good, which may matter: where transitions forbid every other state later on, the lost
one carries the whole posterior. Two cases are safe:

- every entry of the matrices is above `potentials.DENSE`, relative to their largest: whatever follows can favour one
  state over another by at most 1 / DENSE, and what is lost is below 1e-308 / DENSE;
- no state that is reachable falls below what still multiplies with the smallest positive entry without underflow.

A row in neither case is marked in `redo` for :mod:`pyro_em.chains.log_kernel`.

Compiled functions call only those of their own file here and in the files beside: numba's cache does not see a change
in any other.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pyro_em.chains.potentials import Array

__all__ = ["backward_rows", "forward_rows", "predict_rows"]

# Frames whose pairs are added at once.
GATHERED = 8


@njit(cache=True, nogil=True, fastmath={"contract"})
def _multiply(x: Array, matrix: Array, out: Array) -> None:
    """out = x @ matrix, eight rows of the matrix at a time: `out` is read and written once for all of them."""
    rows, columns = matrix.shape
    # What is left over comes first: there are no sums yet to be read.
    i = rows % 8
    for j in range(columns):
        total = 0.0
        for k in range(i):
            total += x[k] * matrix[k, j]
        out[j] = total
    while i < rows:
        a0, a1, a2, a3, a4, a5, a6, a7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(columns):
            low = (a0 * matrix[i, j] + a1 * matrix[i + 1, j]) + (a2 * matrix[i + 2, j] + a3 * matrix[i + 3, j])
            high = (a4 * matrix[i + 4, j] + a5 * matrix[i + 5, j]) + (a6 * matrix[i + 6, j] + a7 * matrix[i + 7, j])
            out[j] += low + high
        i += 8


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_outer(x: Array, y: Array, out: Array) -> None:
    """out += x^T y for up to eight rows of x and as many of y; eight are added in one pass over `out`."""
    rows = x.shape[0]
    for i in range(out.shape[0]):
        if rows == 8:
            a0, a1, a2, a3, a4, a5, a6, a7 = x[0, i], x[1, i], x[2, i], x[3, i], x[4, i], x[5, i], x[6, i], x[7, i]
            for j in range(out.shape[1]):
                low = (a0 * y[0, j] + a1 * y[1, j]) + (a2 * y[2, j] + a3 * y[3, j])
                high = (a4 * y[4, j] + a5 * y[5, j]) + (a6 * y[6, j] + a7 * y[7, j])
                out[i, j] += low + high
        else:
            for k in range(rows):
                a0 = x[k, i]
                for j in range(out.shape[1]):
                    out[i, j] += a0 * y[k, j]


@njit(cache=True, nogil=True)
def _has_lost(potential: Array, predicted: Array, joint: Array, limit: float) -> bool:
    lost = 0
    for j in range(joint.size):
        lost += (joint[j] < limit) & (predicted[j] > 0.0) & (potential[j] > -np.inf)
    return lost > 0


@njit(cache=True, nogil=True)
def _guard(
    potential: Array, predicted: Array, ratio: Array, joint: Array, total: float, floor: float
) -> tuple[float, float, bool]:
    """Mend a frame where only unreachable states have a high potential: scale by the largest of the reachable.

    Returns the sum of `joint`, what the logarithm of the scale changes by, and whether a reachable state is lost.
    """
    states = joint.size
    for j in range(states):
        ratio[j] = ratio[j] if predicted[j] > 0.0 else 0.0
    if not _has_lost(potential, predicted, joint, floor):
        return total, 0.0, False
    top, reachable = -np.inf, -np.inf
    for j in range(states):
        top = max(top, potential[j])
        if predicted[j] > 0.0:
            reachable = max(reachable, potential[j])
    total = 0.0
    for j in range(states):
        ratio[j] = math.exp(potential[j] - reachable) if predicted[j] > 0.0 else 0.0
        joint[j] = predicted[j] * ratio[j]
        total += joint[j]
    return total, reachable - top, _has_lost(potential, predicted, joint, floor)


# The order of the sum over states is left to the compiler, which makes it several sums at a time.
@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _join(predicted: Array, scale: float, ratio: Array, joint: Array) -> float:
    total = 0.0
    for j in range(joint.size):
        predicted[j] *= scale
        joint[j] = predicted[j] * ratio[j]
        total += joint[j]
    return total


@njit(cache=True, nogil=True)
def _add(total: float, rest: float, term: float) -> tuple[float, float]:
    """total + term, and what rounding has taken off all such sums so far (Neumaier 1974).

    One constant added a hundred thousand times is rounded the same way each time: without this the log evidence of a
    long chain is known to a millionth of a nat only, and a converged fit seems to fall.
    """
    new = total + term
    lost = (total - new) + term if abs(total) >= abs(term) else (term - new) + total
    return new, rest + lost


@njit(cache=True, nogil=True)
def _forward_row(
    evidence: float,
    emission: Array,
    length: int,
    steps: Array,
    shift: Array,
    floor: float,
    which: Array,
    alpha: Array,
    ratio: Array,
) -> tuple[float, bool]:
    """Filter one row; returns its log evidence, scales of emissions included, and whether it has to be redone."""
    states = alpha.shape[1]
    predicted, joint = np.ones(states), np.empty(states)
    product, scale, total, rest = 1.0, 1.0, 1.0, 0.0
    for t in range(length):
        if t > 0:
            # Not alpha: the division for its scale then runs beside the product.
            _multiply(joint, steps[which[t - 1]], predicted)
            evidence, rest = _add(evidence, rest, shift[which[t - 1]])
        total = _join(predicted, scale, ratio[t], joint)
        if floor > 0.0:
            total, change, lost = _guard(emission[t], predicted, ratio[t], joint, total, floor)
            evidence, rest = _add(evidence, rest, change)
            if lost:
                return 0.0, True
        if total == 0.0:
            alpha[t:] = 0.0
            return -np.inf, False
        scale = 1.0 / total
        for j in range(states):
            alpha[t, j] = joint[j] * scale
            ratio[t, j] *= scale
        # One logarithm for many frames.
        if total < 1e-100:
            evidence, rest = _add(evidence, rest, math.log(total))
        else:
            product *= total
            if product < 1e-100 or product > 1e100:
                evidence, rest = _add(evidence, rest, math.log(product))
                product = 1.0
    alpha[length:] = 0.0
    return evidence + (rest + math.log(product)), False


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
    ratio: Array,
    evidence: Array,
    redo: Array,
) -> None:
    """Filter the rows first..last - 1, where `share` rows use one group.

    ratio (R, T, S) and evidence (R,) hold the scaled emissions and their scales on entry. On return, ratio is
    p(x_t | z_t) / p(x_t | frames 0..t-1), which is all that the way back needs; it is left undefined beyond the length
    of a row, and in rows that are impossible or to be redone.
    """
    for r in range(first, last):
        g = r // share
        if floor[g] == np.inf and lengths[r] > 1:
            redo[r] = True
            continue
        evidence[r], redo[r] = _forward_row(
            evidence[r], emission[r], lengths[r], steps[g], shift[g], floor[g], which, alpha[r], ratio[r]
        )


@njit(cache=True, nogil=True)
def _backward_row(
    weight: float,
    length: int,
    turned: Array,
    which: Array,
    alpha: Array,
    ratio: Array,
    marginal: Array,
    pairs: Array,
    beta: Array,
    message: Array,
) -> None:
    """Smooth one row; pairs (M, S, S) gains alpha_t(i) message_{t+1}(j), the posterior but for its transition."""
    states = beta.size
    beta[:] = 1.0
    for j in range(states):
        marginal[length - 1, j] = weight * alpha[length - 1, j]
    free = GATHERED
    for t in range(length - 2, -1, -1):
        m = which[t]
        free -= 1
        for j in range(states):
            message[free, j] = beta[j] * ratio[t + 1, j]
        _multiply(message[free], turned[m], beta)
        for j in range(states):
            message[free, j] *= weight
            marginal[t, j] = weight * alpha[t, j] * beta[j]
        if free == 0 or t == 0 or which[t - 1] != m:
            _add_outer(alpha[t : t + GATHERED - free], message[free:], pairs[m])
            free = GATHERED


@njit(cache=True, nogil=True)
def backward_rows(
    first: int,
    last: int,
    share: int,
    turned: Array,
    which: Array,
    lengths: Array,
    alpha: Array,
    ratio: Array,
    evidence: Array,
    redo: Array,
    weights: Array,
    marginal: Array,
    pairs: Array,
) -> None:
    """Smooth the rows first..last - 1; `turned` is `steps` with from and to exchanged, pairs has shape (G, M, S, S)."""
    states = alpha.shape[2]
    beta, message = np.empty(states), np.empty((GATHERED, states))
    for r in range(first, last):
        length = lengths[r]
        if redo[r] or length == 0 or evidence[r] == -np.inf:
            marginal[r] = 0.0
            continue
        g = r // share
        _backward_row(weights[r], length, turned[g], which, alpha[r], ratio[r], marginal[r], pairs[g], beta, message)
        marginal[r, length:] = 0.0


@njit(cache=True, nogil=True)
def predict_rows(share: int, steps: Array, which: Array, lengths: Array, alpha: Array, predicted: Array) -> None:
    """Fill predicted (R, T - 1, S), zero on entry, with p(z_t | frames 0..t-1)."""
    for r in range(alpha.shape[0]):
        for t in range(lengths[r] - 1):
            _multiply(alpha[r, t], steps[r // share, which[t]], predicted[r, t])
            total = predicted[r, t].sum()
            if total > 0.0:
                predicted[r, t] /= total
