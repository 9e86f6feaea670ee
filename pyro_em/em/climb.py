"""A climb of a function of parameters by an optimiser, and what there is around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_em.em.rounded import Rounded
from pyro_em.errors import ModelError

__all__ = ["Climber", "Counted", "climb", "only", "raise_unless_outside"]


class Climber(Protocol):
    """An optimiser of parameters that it was made for."""

    torch: torch.optim.Optimizer
    leaves: Sequence[Tensor]

    def step(self, closure: Callable[[], Any]) -> None:
        """Update as often as it calls ``closure``, which leaves gradients in the parameters."""
        ...

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply every learning rate, in place."""
        ...

    def zero_grad(self) -> None:
        """Drop the gradients."""
        ...


@contextmanager
def only(leaf: Tensor, element: int | None) -> Iterator[None]:
    """Let gradients reach one element of a leaf alone, for the body of a ``with``."""
    if element is None:
        yield
        return
    mask = torch.zeros_like(leaf)
    mask.view(-1)[element] = 1.0
    hook = leaf.register_hook(lambda slope: None if slope is None else slope * mask)
    try:
        yield
    finally:
        hook.remove()


class Counted:
    """A function of the leaves that counts its calls."""

    def __init__(self, q: Callable[[], Tensor]) -> None:
        self.q, self.calls = q, 0

    def __call__(self) -> Tensor:
        """Its value where they are."""
        self.calls += 1
        return self.q()


def climb(q: Callable[[], Tensor], optimizer: Climber, num_steps: int) -> float:
    """Update the optimiser's leaves ``num_steps`` times; ``q`` where they end."""
    shown = Rounded(optimizer.leaves) if _magnifies(optimizer) else Tensor.detach

    def closure() -> Tensor:
        optimizer.zero_grad()
        try:
            with torch.enable_grad():
                loss = -q()
                if loss.requires_grad:
                    loss.backward()
        except ValueError as error:
            raise_unless_outside(error)
            return _wall(optimizer)
        return shown(loss.detach()) if bool(loss.isfinite()) else _wall(optimizer)

    for _ in range(num_steps):
        optimizer.step(closure)
    optimizer.zero_grad()
    try:
        with torch.no_grad():
            return float(q())
    except ValueError as error:
        raise_unless_outside(error)
        return -math.inf


def _wall(optimizer: Climber) -> Tensor:
    """What is shown where the function is not defined: a line search halves its step there, if it knows no slope, while
    it would interpolate towards one, and go on past a loss that is not a number.
    """
    optimizer.zero_grad()
    if isinstance(optimizer.torch, torch.optim.LBFGS):
        for leaf in optimizer.leaves:
            leaf.grad = torch.full_like(leaf, math.nan)
    return torch.tensor(math.inf)


def _magnifies(optimizer: Climber) -> bool:
    """Whether a rounding error in its first step may be seen in its last; in coarser dtypes there is no help."""
    return isinstance(optimizer.torch, torch.optim.LBFGS) and all(p.dtype == torch.float64 for p in optimizer.leaves)


def raise_unless_outside(error: ValueError) -> None:
    """A trial point may leave the support of the model's distributions, which torch reports as a ValueError.

    Any other exception of the model's arrives as the cause of a :class:`ModelError`, and is the user's to see.
    """
    if isinstance(error, ModelError) and not isinstance(error.__cause__, ValueError):
        raise error
