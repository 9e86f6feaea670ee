"""What every order of summation agrees on: the leading digits of a function and of its gradient.

A sum over batches differs from the sum over all data in its last digits. On the way of L-BFGS over a network such a
difference grows tenfold in every iteration or so, until two fits have no digit in common. What an optimiser sees is
therefore rounded, to more digits than a step can use and far fewer than are certain (as sums are made reproducible, by
Demmel & Nguyen 2013, "Fast reproducible floating-point summation", who round terms beforehand). Then both see the same
numbers and take the same steps, to the last digit, unless a number lies so near to the middle between two multiples
that its error decides. That happens to about one derivative in ten million, or in one of some hundred fits of a small
network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rounded", "to_bits"]

SLOPE = 20  # bits of a derivative, counted from its size where the climb began, or from its own if that is larger
LEFT = 8  # of them: once no derivative has more, they are counted anew, from the best point so far
GAIN = 14  # bits of a gain, counted from what slopes promised
LOSS = 36  # bits of the loss; what a gain has below them is told by slopes alone


class _Point(NamedTuple):
    at: Tensor
    slopes: Tensor
    loss: Tensor
    shown: Tensor


class Rounded:
    """A loss and its gradient, of which a climb is shown the leading digits.

    The loss is shown as the sum of gains, from zero on. Each is taken from the best point so far to a new one, by the
    trapezoid rule on the slopes between them, and corrected by the losses as far as these are certain: digits of the
    loss itself, near the end of a climb, would be none of a gain.

    Args:
        leaves: float64; parameters in a coarser dtype leave no digits to round.
    """

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self._leaves = leaves
        self._sizes = torch.zeros(())  # that digits of slopes are counted from
        self._best: _Point | None = None

    def __call__(self, loss: Tensor) -> Tensor:
        """What to show for a finite loss, a scalar in nats, at the leaves' values; rounds the gradients in them."""
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
        shown = best.shown + torch.where(change.isfinite(), change, loss - best.loss)
        if change < 0:
            self._best = _Point(at, slopes, loss, shown)
        return shown


def to_bits(values: Tensor, sizes: Tensor, bits: int) -> Tensor:
    """Values rounded to multiples of the power of two that is ``bits`` bits below their sizes, if there is one; all of
    one shape.
    """
    unit = torch.exp2(sizes.log2().ceil() - bits)
    return torch.where(unit > 0, (values / unit).round() * unit, values)


def _slope(leaf: Tensor) -> Tensor:
    if leaf.grad is None:
        return torch.zeros(leaf.numel()).to(leaf)
    return (leaf.grad.to_dense() if leaf.grad.is_sparse else leaf.grad).reshape(-1)
