"""Sums whose terms come one after the other, each with a graph too large to keep them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["summed"]


def summed(terms: Iterable[Tensor], leaves: Sequence[Tensor]) -> Tensor:
    """The sum of scalars, float64; its gradient in the leaves is taken term by term, so that the graph of one term is
    in memory at a time.

    Args:
        terms: made as they are asked for.
        leaves: what the terms may be differentiated in; tensors of a larger graph are leaves too.
    """
    total = torch.zeros((), dtype=torch.float64)
    slopes: list[Tensor | None] = [None] * len(leaves)
    for term in terms:
        total = total + term.detach()
        if term.requires_grad and leaves:
            found = torch.autograd.grad(term, leaves, allow_unused=True)
            slopes = [g if s is None else s if g is None else s + g for s, g in zip(slopes, found, strict=True)]
        del term
    return total if all(s is None for s in slopes) else _Known.apply(total, slopes, *leaves)


class _Known(torch.autograd.Function):
    """A value whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: Sequence[Tensor | None], *leaves: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None if s is None else grads[0] * s for s in ctx.slopes))
