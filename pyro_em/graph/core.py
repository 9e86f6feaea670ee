"""A distribution without its wrappers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch.distributions import Independent

__all__ = ["Core", "core_of"]


@dataclass(frozen=True)
class Core:
    """A distribution without its wrappers.

    Attributes:
        fn: the innermost distribution.
        events: how many of its batch dimensions, on the right, the site counts as one event.
        masks: masks met on the way in, each with the number of event dimensions to its right.
    """

    fn: Any
    events: int
    masks: tuple[tuple[Any, int], ...]


def core_of(fn: Any) -> Core:
    """Take off ``Independent``, ``mask`` and ``expand``, in whatever order they were put on."""
    events, masks = 0, []
    while True:
        if isinstance(fn, Independent):
            events += fn.reinterpreted_batch_ndims
        elif isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, events))
        elif not isinstance(fn, ExpandedDistribution):
            return Core(fn, events, tuple(masks))
        fn = fn.base_dist
