"""What every order of summation agrees on: the leading digits of a function and of its gradient.

A sum over batches differs from the sum over all data in its last digits. On the way of L-BFGS over a network such a
difference grows tenfold in every iteration or so, until the two fits have no digit in common. What an optimiser sees is
therefore rounded, to more digits than a step can use and far fewer than are certain (as sums are made reproducible, by
Demmel & Nguyen 2013, "Fast reproducible floating-point summation", who round terms beforehand). Then both see the same
numbers, and take the same steps to the last digit, unless a number is within its uncertainty of half a unit: that
happens about once in a hundred million numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rounded", "to_bits"]

LEFT = 8  # bits, of which each derivative has some: else they are counted anew, from where the climb has come to
SLOPE = 20  # bits of each derivative, counted from where the climb began: one of 1e6 times its noise is still certain
GAIN = 14  # bits of a gain, counted from what the slopes promised
LOSS = 36  # bits of the loss: a gain that is smaller than that is told by the slopes alone


class _Point(NamedTuple):
    at: Tensor
    slopes: Tensor
    loss: Tensor
    shown: Tensor


class Rounded:
    """A loss and its gradient, of which a climb is shown the leading digits.

    Gains are rounded as they come, from the best point so far to a new one: as parts of the loss itself, near the end
    of a climb, they would have no digits left. The loss is thus shown from zero on.

    Args:
        leaves: float64; parameters in a coarser dtype leave no digits to round.
    """

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self._leaves = leaves
        self._sizes = torch.zeros(())  # that digits of slopes are counted from
        self._best: _Point | None = None

    def __call__(self, loss: Tensor) -> Tensor:
        """What to show for the loss at the leaves' values; rounds the gradients in them."""
        slopes = torch.cat([_slope(leaf) for leaf in self._leaves])
        if not slopes.isfinite().all():
            return loss if self._best is None else self._best.shown + loss - self._best.loss
        if self._best is None or self._is_nearly_there(self._best):
            self._sizes = slopes.abs() if self._best is None else self._best.slopes.abs()
        slopes = to_bits(slopes, torch.maximum(self._sizes, slopes.abs()), SLOPE)
        for leaf, own in zip(self._leaves, slopes.split([leaf.numel() for leaf in self._leaves]), strict=True):
            if leaf.grad is not None:
                leaf.grad = own.reshape(leaf.shape).clone()  # what is done to it stays there
        at = torch.cat([leaf.detach().reshape(-1) for leaf in self._leaves])
        return self._show(at, slopes, loss)

    def _is_nearly_there(self, best: _Point) -> bool:
        """Whether no slope has many digits left."""
        return bool((best.slopes.abs() <= self._sizes * 2.0 ** (LEFT - SLOPE)).all())

    def _show(self, at: Tensor, slopes: Tensor, loss: Tensor) -> Tensor:
        best = self._best
        if best is None:
            self._best = _Point(at, slopes, loss, torch.zeros_like(loss))
            return self._best.shown
        step = at - best.at
        ends = torch.stack([best.slopes @ step, slopes @ step])
        by_slopes, size = ends.mean(), torch.maximum(ends.abs().amax(), best.loss.abs() * 2.0 ** (GAIN - LOSS))
        change = by_slopes + to_bits(loss - best.loss - by_slopes, size, GAIN)
        shown = best.shown + change
        if change < 0:
            self._best = _Point(at, slopes, loss, shown)
        return shown


def to_bits(values: Tensor, sizes: Tensor, bits: int) -> Tensor:
    """Values rounded to multiples of the power of two that is ``bits`` bits below their sizes, if there is one."""
    unit = torch.exp2(sizes.log2().ceil() - bits)
    return torch.where(unit > 0, (values / unit).round() * unit, values)


def _slope(leaf: Tensor) -> Tensor:
    if leaf.grad is None:
        return torch.zeros(leaf.numel()).to(leaf)
    return (leaf.grad.to_dense() if leaf.grad.is_sparse else leaf.grad).reshape(-1)
