"""Probabilities that start at exactly zero stay there: left-to-right chains, states that cannot follow each other.

Unconstrained coordinates cannot hold a zero. So a parameter on the simplex keeps, beside its leaf, the places of its
zeros, and whoever asks for its value gets it with zeros there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

__all__ = ["StartValues", "Zeros"]

TINY = 1e-30  # instead of a zero in a leaf: finite coordinates, in single precision too


def _inside(value: Tensor) -> Tensor:
    """A point of the simplex moved off its edge, by less than rounding."""
    raised = torch.where(value == 0, TINY, value)
    return raised / raised.sum(-1, keepdim=True)


class Zeros:
    """Where parameters on the simplex started at zero."""

    def __init__(self) -> None:
        self.zeros: dict[str, Tensor] = {}
        self.active = True

    def take(self, name: str, value: Tensor, constraint: Any) -> Tensor:
        """A start value for a leaf; its zeros, if they may stay, are noted."""
        self.zeros.pop(name, None)
        if constraint is not constraints.simplex or not bool((value == 0).any()):
            return value
        if not bool(constraint.check(value).all()):
            return value
        self.zeros[name] = value == 0
        return _inside(value)

    def exact(self, name: str, value: Tensor) -> Tensor:
        """The value with its zeros, differentiable."""
        if not self.active or name not in self.zeros:
            return value
        kept = value.masked_fill(self.zeros[name], 0.0)
        return kept / kept.sum(-1, keepdim=True)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Hand out the values of leaves as they are, for the body of a ``with``."""
        self.active = False
        try:
            yield
        finally:
            self.active = True


class StartValues(Messenger):
    """Stands between a model and its parameters.

    It hands ``pyro.param`` copies of initial tensors, as Pyro would optimise the caller's own tensor in place, and
    notes and restores their zeros.
    """

    def __init__(self, zeros: Zeros) -> None:
        super().__init__()
        self.zeros = zeros

    def _pyro_param(self, msg: Any) -> None:
        name, *rest = msg["args"]
        constraint = msg["kwargs"].get("constraint", rest[1] if len(rest) > 1 else constraints.real)
        if rest:
            msg["args"] = (name, self._copy(name, rest[0], constraint), *rest[1:])
        elif "init_tensor" in msg["kwargs"]:
            init = self._copy(name, msg["kwargs"]["init_tensor"], constraint)
            msg["kwargs"] = {**msg["kwargs"], "init_tensor": init}

    def _pyro_post_param(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor):
            msg["value"] = self.zeros.exact(msg["name"], msg["value"])

    def _copy(self, name: str, init: Any, constraint: Any) -> Any:
        if isinstance(init, torch.nn.Parameter):  # a module's own leaf: restored when the space closes
            return init
        if callable(init):
            return lambda: self.zeros.take(name, init().detach().clone(), constraint)
        if isinstance(init, Tensor):
            return lambda: self.zeros.take(name, init.detach().clone(), constraint)
        return init
