"""When to end steps that go on until nothing moves."""

from __future__ import annotations

from torch import Tensor

__all__ = ["is_still"]


def is_still(new: Tensor, old: Tensor, tolerance: float) -> bool:
    """Whether nothing has moved by more than a share of the largest number."""
    return not new.numel() or bool((new - old).abs().max() <= tolerance * (1 + old.abs().max()))
