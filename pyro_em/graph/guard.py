"""Refuse a table that is too large before the model allocates it.

A density in which many latents meet is broadcast by the model's own arithmetic to one entry per joint state.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_em.graph.plan import MAX_TABLE

__all__ = ["JointStates", "JointStatesError", "TableGuard", "TableTooLargeError"]


class TableTooLargeError(Exception):
    """An operation would make a tensor of more than ``MAX_TABLE`` entries; ``entries`` says how many."""

    def __init__(self, entries: int) -> None:
        super().__init__(f"{entries:.3g} entries")
        self.entries = entries


class JointStatesError(Exception):
    """The latents of a run have more joint states than :class:`JointStates` was told to let pass."""


class JointStates:
    """Counts the joint states that latents could meet in, as a run allots them dimensions.

    That is far cheaper than :class:`TableGuard`, and tells whether it is needed at all.

    Args:
        most: the count from which on :class:`JointStatesError` is raised.
    """

    def __init__(self, most: float) -> None:
        self.most, self.sizes = most, dict[int, int]()

    def add(self, dim: int, size: int) -> None:
        """Take note of a latent of this many states along a dimension, which others may use before and after it."""
        if size > self.sizes.get(dim, 1):
            self.sizes[dim] = size
            if prod(self.sizes.values()) > self.most:
                raise JointStatesError


class TableGuard(TorchFunctionMode):
    """Looks at the shapes of every elementwise operation in its body; for a first run only, since that takes time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        bound = 1
        for a in args:
            if isinstance(a, Tensor):
                bound *= a.numel()
        if bound > MAX_TABLE:
            shapes = [a.shape for a in args if isinstance(a, Tensor)]
            entries = _broadcast_size(shapes)
            if entries > MAX_TABLE and entries > max(prod(s) for s in shapes):
                raise TableTooLargeError(entries)
        return func(*args, **(kwargs or {}))


def _broadcast_size(shapes: list[torch.Size]) -> int:
    try:
        return prod(broadcast_shape(*shapes))  # torch's own imports sympy, for half a second of the first fit
    except ValueError:  # not an elementwise operation
        return 0
