"""Random numbers of a fit: seeded, and invisible to the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state

__all__ = ["aside", "isolated_rng", "seeded"]


def seeded(seed: int | None) -> AbstractContextManager[None]:
    """The caller's own random stream, which the body advances; or, given a seed, a stream apart from it."""
    return nullcontext() if seed is None else isolated_rng(seed)


@contextmanager
def aside() -> Iterator[None]:
    """Run the body on the present random stream, and go on as if it had drawn nothing."""
    before = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(before)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Run the body on its own random stream and leave torch, NumPy and ``random`` as they were.

    Args:
        seed: start of the stream; ``None`` continues from a copy of the caller's present state, so that
            ``pyro.set_rng_seed`` before the call decides what the body draws.
    """
    before = get_rng_state()
    with torch.random.fork_rng():
        try:
            if seed is not None:
                pyro.set_rng_seed(seed)
            yield
        finally:
            set_rng_state(before)
