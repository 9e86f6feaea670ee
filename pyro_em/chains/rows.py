"""Forward-backward on arrays by the compiled passes, rows shared out among threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_em.chains import few_kernel, kernel, log_kernel, potentials
from pyro_em.chains.potentials import Array
from pyro_em.chains.threads import spread

__all__ = ["FilteredRows", "filter_rows", "smooth_rows"]


@dataclass(frozen=True)
class FilteredRows:
    """What the way forward leaves: see :class:`~pyro_em.chains.Filtered`, whose attributes these are as arrays.

    Attributes:
        redo: whether a row is among those of ``log_rows``, shape (R,).
    """

    evidence: Array
    alpha: Array
    ratio: Array
    steps: Array
    redo: Array
    log_alpha: Array


def filter_rows(emission: Array, transition: Array, which: Array, lengths: Array) -> FilteredRows:
    """The way forward; nothing is checked.

    Args:
        emission, transition, which: as :class:`~pyro_em.chains.ChainTables` has them, contiguous.
        lengths: of all rows.
    """
    rows, groups, matrices = emission.shape[0], *transition.shape[:2]
    share = rows // groups
    steps, shift, floor = np.empty_like(transition), np.empty((groups, matrices)), np.empty(groups)
    potentials.scale_transitions(transition, steps, shift, floor)
    alpha, ratio = np.empty_like(emission), np.empty_like(emission)
    evidence, redo = np.empty(rows), np.zeros(rows, np.bool_)
    turned = _turned(steps) if emission.shape[2] <= few_kernel.FEW and not floor.any() else None

    def run(first: int, last: int) -> None:
        potentials.scale_emissions(first, last, emission, lengths, ratio, evidence)
        if turned is not None:
            few_kernel.forward_few(first, last, share, turned, shift, which, lengths, alpha, ratio, evidence)
            return
        given = (share, emission, steps, shift, floor, which, lengths)
        kernel.forward_rows(first, last, *given, alpha, ratio, evidence, redo)

    spread(rows, emission.size * emission.shape[2], run)
    log_rows = redo.nonzero()[0]
    log_alpha = np.empty((log_rows.size, *emission.shape[1:]))
    if log_rows.size:
        log_kernel.log_forward_rows(log_rows, share, emission, transition, which, lengths, log_alpha, evidence)
        alpha[log_rows] = np.exp(log_alpha)
    return FilteredRows(evidence, alpha, ratio, steps, redo, log_alpha)


def smooth_rows(
    found: FilteredRows, emission: Array, transition: Array, which: Array, lengths: Array, weights: Array
) -> tuple[Array, Array]:
    """The way back: the marginal (R, T, S) and pairwise (G, M, S, S) of :class:`~pyro_em.chains.Smoothed`."""
    share, steps, log_rows = emission.shape[0] // transition.shape[0], found.steps, found.redo.nonzero()[0]
    is_few, marginal = emission.shape[2] <= few_kernel.FEW, np.empty_like(emission)
    smooth = few_kernel.backward_few if is_few else kernel.backward_rows
    matrices = steps if is_few else _turned(steps)
    fixed = (share, matrices, which, lengths, found.alpha, found.ratio, found.evidence, found.redo, weights, marginal)

    def run(first: int, last: int) -> Array:
        own = np.zeros(transition.shape)
        smooth(first, last, *fixed, own)
        return own

    pairs, *others = spread(len(emission), emission.size * emission.shape[2], run)
    for other in others:
        pairs += other
    pairs *= steps
    if log_rows.size:
        given = (share, emission, transition, which, lengths, found.log_alpha, found.evidence, weights)
        log_kernel.log_backward_rows(log_rows, *given, marginal, pairs)
    return marginal, pairs


def _turned(steps: Array) -> Array:
    """From and to exchanged."""
    return np.ascontiguousarray(steps.swapaxes(2, 3))
