"""The same inference by tensor operations in log space, for devices without a compiled kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_em.chains.tables import ChainTables, Filtered, Smoothed

__all__ = ["backward", "forward", "predict_next", "sample", "viterbi"]


def forward(tables: ChainTables) -> Filtered:
    """See :func:`pyro_em.chains.forward`."""
    emission, lengths = tables.emission.detach(), tables.row_lengths()
    log_alpha = torch.full_like(emission, -torch.inf)
    evidence = emission.new_zeros(emission.shape[0])
    for t in range(emission.shape[1]):
        current = emission[:, t]
        if t > 0:
            current = current + _apply(tables, t - 1, log_alpha[:, t - 1].unsqueeze(-1), -2)
        total = current.logsumexp(-1)
        counts = t < lengths
        evidence = torch.where(counts, evidence + total, evidence)
        possible = (counts & ~torch.isneginf(evidence)).unsqueeze(-1)
        log_alpha[:, t] = torch.where(possible, current - total.unsqueeze(-1), -torch.inf)
    rows = torch.arange(emission.shape[0], device=emission.device)
    unused = emission.new_empty(0)
    return Filtered(tables, evidence, log_alpha.exp(), unused, unused, rows, log_alpha)


def backward(filtered: Filtered, weights: Tensor) -> Smoothed:
    """See :func:`pyro_em.chains.backward`."""
    tables, log_alpha = filtered.tables, filtered.log_alpha
    emission, lengths = tables.emission.detach(), tables.row_lengths()
    possible = ~torch.isneginf(filtered.log_evidence)
    beta = torch.zeros_like(emission[:, 0])
    marginal, pairwise = torch.zeros_like(emission), torch.zeros_like(tables.transition)
    scale = weights.unsqueeze(-1)
    for t in range(emission.shape[1] - 1, -1, -1):
        if t + 1 < emission.shape[1]:
            continues = ((t + 1 < lengths) & possible).unsqueeze(-1)
            v = torch.where(continues, emission[:, t + 1] + beta, 0.0)
            beta = torch.where(continues, _apply(tables, t, v.unsqueeze(-2), -1), 0.0)
            total = torch.where(continues, (log_alpha[:, t] + beta).logsumexp(-1, keepdim=True), 0.0)
            pair = _pairs(tables, t, (log_alpha[:, t] - total).unsqueeze(-1) + v.unsqueeze(-2)).exp()
            pair = torch.where(continues.unsqueeze(-1), pair * scale.unsqueeze(-1), 0.0)
            pairwise[:, tables.which[t]] += pair.unflatten(0, (-1, tables.rows_per_group)).sum(1)
            beta = beta - total
        counts = ((t < lengths) & possible).unsqueeze(-1)
        marginal[:, t] = torch.where(counts, (log_alpha[:, t] + beta).exp() * scale, 0.0)
    return Smoothed(marginal, pairwise)


def viterbi(tables: ChainTables) -> tuple[Tensor, Tensor]:
    """See :func:`pyro_em.chains.viterbi`."""
    emission, lengths = tables.emission.detach(), tables.row_lengths()
    states = emission.new_zeros(emission.shape[:2], dtype=torch.int64)
    sources = torch.zeros_like(emission, dtype=torch.int64)
    score = emission.new_zeros(emission.shape[0])
    delta = torch.zeros_like(emission[:, 0])
    for t in range(emission.shape[1]):
        current = delta
        if t > 0:
            current, sources[:, t] = _pairs(tables, t - 1, delta.unsqueeze(-1)).max(-2)
        current = current + emission[:, t]
        counts = t < lengths
        top = current.amax(-1)
        score = torch.where(counts, score + top, score)
        finite = torch.where(torch.isneginf(top), 0.0, top).unsqueeze(-1)
        delta = torch.where(counts.unsqueeze(-1), current - finite, delta)
    z = delta.argmax(-1)
    for t in range(emission.shape[1] - 1, -1, -1):
        states[:, t] = torch.where(t < lengths, z, 0)
        source = sources[:, t].gather(-1, z.unsqueeze(-1)).squeeze(-1)
        z = torch.where(t < lengths, source, z)
    return torch.where(torch.isneginf(score).unsqueeze(-1), 0, states), score


def sample(filtered: Filtered, uniforms: Tensor) -> Tensor:
    """See :func:`pyro_em.chains.sample`."""
    tables, log_alpha = filtered.tables, filtered.log_alpha
    draws, _, frames = uniforms.shape
    possible = ~torch.isneginf(filtered.log_evidence)
    paths = torch.zeros_like(uniforms, dtype=torch.int64)
    z = paths[:, :, 0]
    for t in range(frames - 1, -1, -1):
        weights = log_alpha[:, t].expand(draws, -1, -1)
        if t + 1 < frames:
            arrive = _pairs(tables, t, log_alpha[:, t].unsqueeze(-1)).expand(draws, -1, -1, -1)
            column = z[..., None, None].expand(-1, -1, arrive.shape[-2], 1)
            continues = (t + 1 < tables.row_lengths()).unsqueeze(-1)
            weights = torch.where(continues, arrive.gather(-1, column).squeeze(-1), weights)
        counts = possible & (t < tables.row_lengths())
        z = torch.where(counts, _draw(weights, uniforms[:, :, t]), 0)
        paths[:, :, t] = z
    return paths


def predict_next(filtered: Filtered) -> Tensor:
    """See :func:`pyro_em.chains.predict_next`."""
    tables, log_alpha = filtered.tables, filtered.log_alpha
    predicted = torch.zeros_like(log_alpha[:, 1:])
    for t in range(predicted.shape[1]):
        log_predicted = _apply(tables, t, log_alpha[:, t].unsqueeze(-1), -2)
        total = log_predicted.logsumexp(-1, keepdim=True)
        counts = (t + 1 < tables.row_lengths()).unsqueeze(-1) & ~torch.isneginf(total)
        predicted[:, t] = torch.where(counts, (log_predicted - total).exp(), 0.0)
    return predicted


def _pairs(tables: ChainTables, t: int, rows: Tensor) -> Tensor:
    """Add the matrix of step t to the rows' (R, S or 1, S or 1) tables."""
    matrices = tables.transition.detach()[:, tables.which[t]]
    return (rows.unflatten(0, (-1, tables.rows_per_group)) + matrices.unsqueeze(1)).flatten(0, 1)


def _apply(tables: ChainTables, t: int, rows: Tensor, dim: int) -> Tensor:
    return _pairs(tables, t, rows).logsumexp(dim)


def _draw(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Index drawn by inversion; never one of weight zero."""
    top = log_weights.amax(-1, keepdim=True)
    weights = (log_weights - torch.where(torch.isneginf(top), 0.0, top)).exp()
    totals = weights.cumsum(-1)
    # Rounding may bring the threshold up to the total: then the last state of positive weight is meant.
    below = (totals <= (uniforms * totals[..., -1]).unsqueeze(-1)).sum(-1)
    last = (torch.arange(1, weights.shape[-1] + 1, device=weights.device) * (weights > 0)).amax(-1) - 1
    return torch.minimum(below, last.clamp(min=0))
