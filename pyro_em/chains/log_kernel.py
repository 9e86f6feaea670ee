"""Forward-backward in log space, compiled: for the rows in which scaled probabilities would lose a state."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pyro_em.chains.potentials import Array

__all__ = ["log_backward_rows", "log_forward_rows", "log_predict_rows"]


@njit(cache=True, nogil=True)
def _log_sum_exp(x: Array) -> float:
    top = x.max()
    if top == -np.inf:
        return top
    total = 0.0
    for value in x:
        total += math.exp(value - top)
    return top + math.log(total)


@njit(cache=True, nogil=True)
def _log_predict(log_alpha: Array, transition: Array, terms: Array, log_predicted: Array) -> None:
    for j in range(terms.size):
        for i in range(terms.size):
            terms[i] = log_alpha[i] + transition[i, j]
        log_predicted[j] = _log_sum_exp(terms)


@njit(cache=True, nogil=True)
def _add(total: float, rest: float, term: float) -> tuple[float, float]:
    """total + term, and what rounding has taken off all such sums so far (Neumaier 1974)."""
    new = total + term
    lost = (total - new) + term if abs(total) >= abs(term) else (term - new) + total
    return new, rest + lost


@njit(cache=True, nogil=True)
def _log_forward_row(emission: Array, length: int, transition: Array, which: Array, log_alpha: Array) -> float:
    states = emission.shape[1]
    terms, log_predicted = np.empty(states), np.zeros(states)
    evidence, rest = 0.0, 0.0
    log_alpha[:] = -np.inf
    for t in range(length):
        if t > 0:
            _log_predict(log_alpha[t - 1], transition[which[t - 1]], terms, log_predicted)
        log_alpha[t] = emission[t] + log_predicted
        total = _log_sum_exp(log_alpha[t])
        if total == -np.inf:
            return total
        evidence, rest = _add(evidence, rest, total)
        log_alpha[t] -= total
    return evidence + rest


@njit(cache=True, nogil=True)
def log_forward_rows(
    rows: Array,
    share: int,
    emission: Array,
    transition: Array,
    which: Array,
    lengths: Array,
    log_alpha: Array,
    evidence: Array,
) -> None:
    """Filter the given rows; log_alpha has one row for each of them, `evidence` one for every row."""
    for n in range(rows.size):
        r = rows[n]
        evidence[r] = _log_forward_row(emission[r], lengths[r], transition[r // share], which, log_alpha[n])


@njit(cache=True, nogil=True)
def log_predict_rows(
    rows: Array, share: int, transition: Array, which: Array, lengths: Array, log_alpha: Array, predicted: Array
) -> None:
    """Fill the given rows of predicted (R, T - 1, S) with p(z_t | frames 0..t-1)."""
    terms = np.empty(log_alpha.shape[2])
    log_predicted = np.empty_like(terms)
    for n in range(rows.size):
        for t in range(lengths[rows[n]] - 1):
            _log_predict(log_alpha[n, t], transition[rows[n] // share, which[t]], terms, log_predicted)
            total = _log_sum_exp(log_predicted)
            predicted[rows[n], t] = 0.0
            if total > -np.inf:
                predicted[rows[n], t] = np.exp(log_predicted - total)


@njit(cache=True, nogil=True)
def _log_backward_row(
    weight: float,
    length: int,
    emission: Array,
    transition: Array,
    which: Array,
    log_alpha: Array,
    marginal: Array,
    pairwise: Array,
) -> None:
    states = emission.shape[1]
    beta, v, terms = np.zeros(states), np.empty(states), np.empty(states)
    for j in range(states):
        marginal[length - 1, j] = weight * math.exp(log_alpha[length - 1, j])
    for t in range(length - 2, -1, -1):
        a = transition[which[t]]
        for j in range(states):
            v[j] = emission[t + 1, j] + beta[j]
        for i in range(states):
            for j in range(states):
                terms[j] = a[i, j] + v[j]
            beta[i] = _log_sum_exp(terms)
        total = _log_sum_exp(log_alpha[t] + beta)
        for i in range(states):
            for j in range(states):
                pairwise[which[t], i, j] += weight * math.exp(log_alpha[t, i] + a[i, j] + v[j] - total)
            beta[i] -= total
            marginal[t, i] = weight * math.exp(log_alpha[t, i] + beta[i])


@njit(cache=True, nogil=True)
def log_backward_rows(
    rows: Array,
    share: int,
    emission: Array,
    transition: Array,
    which: Array,
    lengths: Array,
    log_alpha: Array,
    evidence: Array,
    weights: Array,
    marginal: Array,
    pairwise: Array,
) -> None:
    """Smooth the given rows: fill their `marginal`, which is zero on entry, and add to `pairwise` (G, M, S, S)."""
    for n in range(rows.size):
        r = rows[n]
        if lengths[r] > 0 and evidence[r] > -np.inf:
            g = r // share
            _log_backward_row(
                weights[r], lengths[r], emission[r], transition[g], which, log_alpha[n], marginal[r], pairwise[g]
            )
