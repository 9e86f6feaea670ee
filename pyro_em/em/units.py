"""Units for a climb: steps along which the slope changes alike, whatever units the parameters themselves are in.

A coefficient of squared years moves a predictor a thousand times as far as one of years. L-BFGS, which begins with
steps alike in all coordinates, creeps along such a valley until its rules take it for the end. An inverse root of the
Hessian makes the valley round (Nocedal & Wright 2006, section 2.2). The Hessian is found by central differences of
gradients, taken in the units known so far, so that a second look tells what was below the rounding of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_em.em.rounded import to_bits
from pyro_em.optim import Optimizer, OptimizerSpec

__all__ = ["MANY", "InUnits", "are_uneven", "flat", "look"]

MANY = 64  # coordinates, of more than which no Hessian is found: it takes two gradients for each
WIDTHS = 6  # tries to find a step over which the slope is a line, each a hundredth of the one before
BENT = 0.1  # of the change of slope, that it may miss a line by
LARGEST = 100.0  # unit, in a parameter's own: where a network is saturated there is no curvature, nor anything to find
UNEVEN = 100.0  # ratio of steps
CERTAIN = 14  # bits of a curvature, which is a difference over a step of a ten thousandth
FLATTEST = 1e-3  # curvature, of the largest, that one look trusts; a valley flatter than that is seen by the next

Slope = Callable[[], Tensor | None]


def flat(leaves: Sequence[Tensor]) -> Tensor:
    """The leaves as one vector, float64."""
    return torch.cat([leaf.detach().reshape(-1).to(torch.float64) for leaf in leaves])


def look(slope: Slope, leaves: Sequence[Tensor], units: Tensor) -> Tensor:
    """Better units at the leaves' values, which stay.

    Args:
        slope: the gradient of what is climbed, shape (n,), at the leaves' values; ``None`` where it has none.
        leaves: of n elements in all.
        units: those known, shape (n, n): a column is a step.

    Returns:
        A step for each column, shape (n, n).
    """
    here, first = flat(leaves), slope()
    if first is None:
        return units
    try:
        rows = [_bend(slope, leaves, here, units, column, units.T @ first) for column in units.T]
    finally:
        _put(leaves, here)
    return units @ _inverse_root(torch.stack(rows), units.T @ units / LARGEST**2)


def are_uneven(units: Tensor) -> bool:
    """Whether steps that move the objective alike differ by more than is usual among the weights of a network."""
    sizes = units.norm(dim=-1).clamp_max(1.0)  # a weight that is saturated may go any way
    return bool(sizes.amax() > UNEVEN * sizes.amin())


def _bend(slope: Slope, leaves: Sequence[Tensor], here: Tensor, units: Tensor, step: Tensor, first: Tensor) -> Tensor:
    """How the slope changes along a step; zero where no step is found over which it is a line."""
    coarsest = max(torch.finfo(leaf.dtype).eps for leaf in leaves)
    for i in range(WIDTHS):
        width = coarsest**0.25 * 1e-2**i
        ends = []
        for sign in (1.0, -1.0):
            _put(leaves, here + sign * width * step)
            found = slope()
            ends.append(None if found is None else units.T @ found)
        after, before = ends
        if after is not None and before is not None:
            change, miss = after - before, after + before - 2 * first
            if float(miss.norm()) <= BENT * float(change.norm()) + coarsest**0.5 * float(first.norm()):
                return change / (2 * width)
    return torch.zeros_like(first)


def _inverse_root(bends: Tensor, least: Tensor) -> Tensor:
    """R with R' (|H| + least) R = 1, but for what is too flat to tell."""
    hessian = (bends + bends.T) / 2
    own = (hessian.diagonal().abs() + least.diagonal()).sqrt().log2().round().exp2()
    scale = own.unsqueeze(-1) * own
    hessian = hessian / scale
    values, vectors = torch.linalg.eigh(to_bits(hessian, torch.ones_like(hessian), CERTAIN))
    values = values.abs()
    curved = (vectors * values.clamp_min(FLATTEST * values.amax())) @ vectors.T + least / scale
    factor, failed = torch.linalg.cholesky_ex(curved)
    return torch.eye(len(own)).to(own) if failed else factor.inverse().T / own.unsqueeze(-1)


def _put(leaves: Sequence[Tensor], vector: Tensor) -> None:
    at = 0
    for leaf in leaves:
        leaf.data.copy_(vector[at : at + leaf.numel()].reshape(leaf.shape))
        at += leaf.numel()


class InUnits:
    """An optimiser of steps in units, which moves the leaves along.

    Args:
        spec: the optimiser.
        leaves: of n elements in all.
        units: a column is a step, shape (n, n).
    """

    def __init__(self, spec: OptimizerSpec, leaves: Sequence[Tensor], units: Tensor) -> None:
        self.leaves, self._units, self._base = leaves, units, flat(leaves)
        self._steps = torch.zeros_like(self._base).requires_grad_(True)
        self._inner = Optimizer(spec, {"": self._steps})
        self.torch = self._inner.torch

    def step(self, closure: Callable[[], Tensor]) -> None:
        """Update as often as the optimiser calls ``closure``, which leaves gradients in the leaves."""

        def moved() -> Tensor:
            self._move()
            loss = closure()
            parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves]
            self._steps.grad = self._units.T @ flat(parts)
            return loss

        self._inner.step(moved)
        self._move()

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply every learning rate, in place."""
        self._inner.scale_learning_rate(factor)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def _move(self) -> None:
        _put(self.leaves, self._base + self._units @ self._steps.detach())
