"""Which implementation runs a pass: compiled kernels on the CPU, tensor operations on any other device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_em.chains import kernel, log_kernel, paths, scan
from pyro_em.chains.rows import FilteredRows, filter_rows, smooth_rows
from pyro_em.chains.tables import ChainTables, Filtered, Smoothed, as_array
from pyro_em.chains.threads import spread

__all__ = ["backward", "forward", "predict_next", "sample", "viterbi"]


def forward(tables: ChainTables) -> Filtered:
    """Filter every row: log p(x) and p(z_t | frames 0..t).

        alpha_t(j) = emission_t(j) sum_i alpha_{t-1}(i) transition(i, j) / c_t,   log p(x) = sum_t log c_t

    Args:
        tables: the chains.

    A row in which no path is possible has log evidence -inf, a row of length 0 has log evidence 0. Rows in which scaled
    probabilities could lose a state that matters later are done in log space. Source: Rabiner (1989), section III.
    """
    if tables.emission.device.type != "cpu":
        return scan.forward(tables)
    found = filter_rows(*tables.arrays)
    done = (found.evidence, found.alpha, found.ratio, found.steps, found.redo.nonzero()[0], found.log_alpha)
    return Filtered(tables, *map(torch.from_numpy, done))


def backward(filtered: Filtered, weights: Tensor | None = None) -> Smoothed:
    """Smooth every filtered row: the posterior of each frame, and of each two neighbours.

        marginal_t(i) = w p(z_t = i | x),   pairwise_m(i, j) = sum_{t: which_t = m} w p(z_t = i, z_{t+1} = j | x)

    Args:
        filtered: what :func:`forward` returned.
        weights: shape (R,), float64, finite: how often each row counts; None: once. Any sign.

    Raises:
        ValueError: the shape or dtype of `weights` does not fit.

    Both are the gradient of sum_r w_r log p(x_r) with respect to the log-potentials. A row in which no path is possible
    contributes zero. Source: Rabiner (1989), section III; Eisner (2016) for the gradient.
    """
    tables = filtered.tables
    if weights is None:
        weights = torch.ones_like(filtered.log_evidence)
    _check("weights", weights, filtered.log_evidence.shape)
    if tables.emission.device.type != "cpu":
        return scan.backward(filtered, weights)
    redo = torch.zeros_like(filtered.log_evidence, dtype=torch.bool)
    redo[filtered.log_rows] = True
    fields = (filtered.log_evidence, filtered.alpha, filtered.ratio, filtered.steps, redo, filtered.log_alpha)
    found = FilteredRows(*(x.numpy() for x in fields))
    return Smoothed(*map(torch.from_numpy, smooth_rows(found, *tables.arrays, as_array(weights))))


def viterbi(tables: ChainTables) -> tuple[Tensor, Tensor]:
    """The best path of every row, and its log-potential.

        argmax_z sum_t emission_t(z_t) + sum_t transition(z_t, z_{t+1})

    Args:
        tables: the chains.

    Returns:
        States, shape (R, T), int64, zero beyond `lengths` and in impossible rows; log-potentials, shape (R,), -inf in
        impossible rows. Where paths tie, the last state is the lowest of the best, and so is each one before it given
        its successor. Source: Viterbi (1967).
    """
    if tables.emission.device.type != "cpu":
        return scan.viterbi(tables)
    emission, transition, which, lengths = tables.arrays
    states, score = np.zeros(emission.shape[:2], np.int64), np.empty(emission.shape[0])
    fixed = (tables.rows_per_group, emission, transition, which, lengths, states, score)
    work = emission.size * emission.shape[2]
    spread(len(emission), work, lambda first, last: paths.viterbi_rows(first, last, *fixed))
    return torch.from_numpy(states), torch.from_numpy(score)


def sample(filtered: Filtered, uniforms: Tensor) -> Tensor:
    """Joint draws of whole paths from the posterior.

        z_T ~ alpha_T,   p(z_t = i | z_{t+1} = j, x) proportional to alpha_t(i) transition(i, j)

    Args:
        filtered: what :func:`forward` returned.
        uniforms: shape (n, R, T), float64, in [0, 1): a path is made of these by inversion, row by row.

    Returns:
        States, shape (n, R, T), int64, zero beyond `lengths` and in impossible rows.

    Raises:
        ValueError: the shape or dtype of `uniforms` does not fit.

    The path of a row depends on its own uniforms only. Source: Scott (2002).
    """
    tables = filtered.tables
    rows, frames, _ = tables.emission.shape
    _check("uniforms", uniforms, (*uniforms.shape[:1], rows, frames))
    if tables.emission.device.type != "cpu":
        return scan.sample(filtered, uniforms)
    _, transition, which, lengths = tables.arrays
    drawn = np.zeros(uniforms.shape, np.int64)
    log_row = np.full(rows, -1)
    log_row[filtered.log_rows.numpy()] = np.arange(len(filtered.log_rows))
    found = (filtered.alpha.numpy(), log_row, filtered.log_alpha.numpy(), filtered.log_evidence.numpy())
    share, steps = tables.rows_per_group, filtered.steps.numpy()
    paths.sample_rows(share, transition, steps, which, lengths, *found, as_array(uniforms), drawn)
    return torch.from_numpy(drawn)


def predict_next(filtered: Filtered) -> Tensor:
    """p(z_t | frames 0..t-1) for t = 1..T-1, shape (R, T - 1, S).

        p(z_t = j | frames 0..t-1) = sum_i alpha_{t-1}(i) transition(i, j) / sum_ij alpha_{t-1}(i) transition(i, j)

    Args:
        filtered: what :func:`forward` returned.

    Zero beyond `lengths`, and after the frame in which a row becomes impossible.
    """
    tables = filtered.tables
    if tables.emission.device.type != "cpu":
        return scan.predict_next(filtered)
    emission, transition, which, lengths = tables.arrays
    rows, frames, states = emission.shape
    predicted, share = np.zeros((rows, frames - 1, states)), tables.rows_per_group
    kernel.predict_rows(share, filtered.steps.numpy(), which, lengths, filtered.alpha.numpy(), predicted)
    log_rows, log_alpha = filtered.log_rows.numpy(), filtered.log_alpha.numpy()
    log_kernel.log_predict_rows(log_rows, share, transition, which, lengths, log_alpha, predicted)
    return torch.from_numpy(predicted)


def _check(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """The compiled passes read as many numbers as the chains have, unchecked."""
    if value.shape != shape or value.dtype != torch.float64:
        raise ValueError(
            f"Chains of this size need {name} of shape {tuple(shape)} and dtype torch.float64, not "
            f"{tuple(value.shape)} and {value.dtype}. Make {name} for the rows of these chains."
        )
