"""What a call must leave alone: Pyro's param store and every random number generator."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pytest
import torch

__all__ = ["refused", "untouched"]


def _store() -> dict[str, tuple[int, int, list[Any], Any]]:
    """By parameter: which leaf it is, its version, its values and its gradient."""
    store = pyro.get_param_store()
    return {n: (id(p), p._version, p.tolist(), p.grad) for n, p in store.named_parameters()}


def _generators() -> tuple[Any, ...]:
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2], random.getstate()


@contextmanager
def untouched() -> Iterator[None]:
    """The body must leave a store that is not empty, and the generators, as they are."""
    pyro.param("bystander", torch.tensor([0.5, 2.0]), constraint=torch.distributions.constraints.positive)
    store, generators = _store(), _generators()
    yield
    assert _store() == store
    assert _generators() == generators


@contextmanager
def refused(error: type[Exception], match: str) -> Iterator[None]:
    """The body must raise `error` with a message that matches (`.` spans lines), and change nothing."""
    with untouched(), pytest.raises(error, match=f"(?s){match}"):
        yield
