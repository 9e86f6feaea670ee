"""Tables and expected statistics of one factor, a range of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.sparse import SparseFactor
from pyro_em.families.base import Augmented

__all__ = ["ALL", "Dense", "add_stats", "base_measure", "dense", "features", "table"]

ALL = slice(None)


def features(factor: TensorFactor, rows: slice, dtype: torch.dtype) -> Tensor:
    """Features feature-first, shape (S, n or 1, K or 1, E)."""
    x = factor.centred(factor.part(factor.x, rows), dtype)
    rank = factor.book.family.rank
    return factor.book.family.features(x.movedim(list(range(3, 3 + rank)), list(range(rank))))


def table(factor: TensorFactor, coefficients: Tensor, rows: slice, args: dict[str, Tensor]) -> Tensor:
    """Log-densities without the base measure, float64, shape (n or 1, K or 1).

    Args:
        coefficients: of the book's cells, shape (C, S + 1).
        args: the book's cell arguments, for families whose features depend on them.
    """
    cell = factor.part(factor.cell, rows)
    if factor.is_augmented:
        x = factor.centred(factor.part(factor.x, rows), torch.float64)
        density = cast(Augmented, factor.book.family).log_prob(x, **{n: a[cell] for n, a in args.items()})
    else:
        own = coefficients[cell]
        density = torch.einsum("snke,nkes->nke", features(factor, rows, torch.float64), own[..., :-1])
        density = density + own[..., -1]
    if factor.x.shape[1] > 1:  # the data depend on the state, and so does their base measure
        density = density + _base(factor, rows)
    if factor.mask is not None:
        density = torch.where(factor.part(factor.mask, rows), density, 0.0)
    return (density if factor.multiplicity is None else density * factor.multiplicity).sum(-1)


def add_stats(factor: TensorFactor, weights: Tensor, stats: Tensor, rows: slice, args: dict[str, Tensor]) -> None:
    """Add expected features and counts to ``stats`` (C, S + 1), in place.

    Args:
        weights: posterior of the states times the datum's weight, shape (n, K).
    """
    cell = factor.part(factor.cell, rows)
    if factor.is_augmented:
        x = factor.centred(factor.part(factor.x, rows), torch.float64)
        t = cast(Augmented, factor.book.family).augment(x, **{n: a[cell] for n, a in args.items()})
    else:
        t = features(factor, rows, torch.float64)
    mask = None if factor.mask is None else factor.part(factor.mask, rows)
    for axis in (0, 1):  # sum weights over what neither data nor cells nor masks vary over
        alike = t.shape[1 + axis] == 1 and cell.shape[axis] == 1 and (mask is None or mask.shape[axis] == 1)
        if alike:
            weights = weights.sum(axis, keepdim=True)
    over = weights.unsqueeze(-1) if mask is None else weights.unsqueeze(-1) * mask
    over = over if factor.multiplicity is None else over * factor.multiplicity
    shape = [max(sizes) for sizes in zip(t.shape[1:], cell.shape, over.shape, strict=True)]
    over, cell = over.expand(shape), cell.expand(shape).reshape(-1)
    values = torch.cat([torch.where(over == 0, 0.0, t * over), over.unsqueeze(0)])
    stats.index_add_(0, cell, values.reshape(len(values), -1).T)


def base_measure(factor: TensorFactor | ElementFactor | SparseFactor, row_weights: Tensor | None) -> float:
    """The part of the log evidence that no parameter touches, in nats.

    Where the data depend on the state it belongs to the table instead.
    """
    if isinstance(factor, SparseFactor):
        return float(factor.row_base.sum() if row_weights is None else factor.row_base @ row_weights)
    total = 0.0
    if factor.x.shape[1] > 1:
        return total
    step = max(1, 2**20 // max(1, factor.x[0].numel()))
    for start in range(0, factor.num_rows, step):
        rows = slice(start, min(start + step, factor.num_rows))
        value = factor.base_measure(rows) if isinstance(factor, ElementFactor) else _base(factor, rows)
        if factor.mask is not None:
            mask = factor.mask if factor.mask.shape[0] == 1 else factor.mask[rows]
            value = torch.where(mask, value, 0.0)
        value = value if factor.multiplicity is None else value * factor.multiplicity
        by_row = value.sum(-1)[:, 0].expand(rows.stop - rows.start)
        total += float(by_row.sum() if row_weights is None else (by_row * row_weights[rows]).sum())
    return total


def _base(factor: TensorFactor, rows: slice) -> Tensor:
    x = factor.part(factor.x, rows).to(torch.float64)
    x = x.nan_to_num(0.0, 0.0, 0.0) if factor.mask is not None else x
    rank = factor.book.family.rank
    return factor.book.family.base_measure(x.movedim(list(range(3, 3 + rank)), list(range(rank))))


@dataclass(frozen=True)
class Dense:
    """A dense factor's coefficients as one matrix.

    Attributes:
        matrix: shape (K, S * E), with count columns behind where the factor has a mask.
        constant: shape (K, 1).
    """

    matrix: Tensor
    constant: Tensor


def dense(factor: TensorFactor, coefficients: Tensor) -> Dense:
    """Coefficients over states and (feature, element) pairs."""
    matrix, last = coefficients.take(factor.entries), coefficients.take(factor.counted)
    if factor.mask is None:
        return Dense(matrix, last.sum(1, keepdim=True))
    counts = last if factor.mask.shape[2] > 1 else last.sum(1, keepdim=True)
    return Dense(torch.cat([matrix, counts], 1), torch.zeros_like(last[:, :1]))
