"""Forward-backward in scaled probabilities for few states, compiled: the sums of a frame stay in registers.

The same as :mod:`pyro_em.chains.kernel`, where no loss by underflow can matter (its first case). With so few states,
what a frame costs is memory written and read again; here each entry is finished before the next is begun.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pyro_em.chains.potentials import Array

__all__ = ["FEW", "backward_few", "forward_few"]

# Beyond so many states, vectors of the general kernel are faster.
FEW = 10


@njit(cache=True, nogil=True)
def _add(total: float, rest: float, term: float) -> tuple[float, float]:
    """total + term, and what rounding has taken off all such sums so far (Neumaier 1974)."""
    new = total + term
    lost = (total - new) + term if abs(total) >= abs(term) else (term - new) + total
    return new, rest + lost


@njit(cache=True, nogil=True, fastmath={"contract"})
def _forward_row(
    evidence: float, length: int, turned: Array, shift: Array, which: Array, alpha: Array, ratio: Array
) -> float:
    """Filter one row; returns its log evidence, scales of emissions included."""
    states = alpha.shape[1]
    joint, fresh = np.empty(states), np.empty(states)
    product, scale, rest = 1.0, 1.0, 0.0
    for t in range(length):
        total = 0.0
        if t == 0:
            for j in range(states):
                fresh[j] = ratio[t, j]
                total += fresh[j]
        else:
            m = which[t - 1]
            for j in range(states):
                predicted = 0.0
                for k in range(states):
                    predicted += joint[k] * turned[m, j, k]
                fresh[j] = predicted * scale * ratio[t, j]
                total += fresh[j]
            evidence, rest = _add(evidence, rest, shift[m])
        if total == 0.0:
            alpha[t:] = 0.0
            return -np.inf
        scale = 1.0 / total
        for j in range(states):
            joint[j] = fresh[j]
            alpha[t, j] = fresh[j] * scale
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
    return evidence + (rest + math.log(product))


@njit(cache=True, nogil=True)
def forward_few(
    first: int,
    last: int,
    share: int,
    turned: Array,
    shift: Array,
    which: Array,
    lengths: Array,
    alpha: Array,
    ratio: Array,
    evidence: Array,
) -> None:
    """:func:`~pyro_em.chains.kernel.forward_rows` of groups whose floor is zero; `turned` has from and to exchanged."""
    for r in range(first, last):
        g = r // share
        evidence[r] = _forward_row(evidence[r], lengths[r], turned[g], shift[g], which, alpha[r], ratio[r])


@njit(cache=True, nogil=True, fastmath={"contract"})
def _backward_row(
    weight: float,
    length: int,
    steps: Array,
    which: Array,
    alpha: Array,
    ratio: Array,
    marginal: Array,
    pairs: Array,
    beta: Array,
    message: Array,
) -> None:
    """Smooth one row; pairs (M, S, S) gains the posterior but for its transition."""
    states = beta.size
    for j in range(states):
        beta[j] = 1.0
        marginal[length - 1, j] = weight * alpha[length - 1, j]
    for t in range(length - 2, -1, -1):
        m = which[t]
        for j in range(states):
            message[j] = beta[j] * ratio[t + 1, j]
        for i in range(states):
            total, own = 0.0, weight * alpha[t, i]
            for j in range(states):
                total += steps[m, i, j] * message[j]
                pairs[m, i, j] += own * message[j]
            beta[i] = total
            marginal[t, i] = own * total


@njit(cache=True, nogil=True)
def backward_few(
    first: int,
    last: int,
    share: int,
    steps: Array,
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
    """:func:`~pyro_em.chains.kernel.backward_rows`; takes `steps` as they are."""
    states = alpha.shape[2]
    beta, message = np.empty(states), np.empty(states)
    for r in range(first, last):
        length = lengths[r]
        if redo[r] or length == 0 or evidence[r] == -np.inf:
            marginal[r] = 0.0
            continue
        g = r // share
        _backward_row(weights[r], length, steps[g], which, alpha[r], ratio[r], marginal[r], pairs[g], beta, message)
        marginal[r, length:] = 0.0
