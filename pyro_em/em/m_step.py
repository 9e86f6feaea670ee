"""The gradient M-step: raise Q with the posterior held fixed, by any optimiser.

Q(theta) = E_q[log p(x, z; theta)] is traced afresh at every evaluation, so whatever the model computes is
differentiated. At the parameters of the E-step its gradient equals that of the log evidence (Fisher's identity).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_em.em.stopping import rounding
from pyro_em.errors import ModelError
from pyro_em.optim import TRIAL, Optimizer, OptimizerSpec, climbing

__all__ = ["Ascent", "GradientMStep"]

DEFAULT = functools.partial(climbing, max_iter=20, tolerance_grad=1e-8, tolerance_change=1e-10)


@dataclass(frozen=True)
class GradientMStep:
    """Raise Q by ``num_steps`` updates of an optimiser; an update sequence that lowers Q is undone.

    Args:
        optim: a ``pyro.optim`` object, or a callable that makes a torch optimiser from parameters, such as
            ``partial(torch.optim.Adam, lr=1e-2)``. Default: L-BFGS with a strong-Wolfe line search, at most 20
            iterations; where Q must be maximised to the last digit, pass one with a larger ``max_iter``.
        num_steps: optimiser updates per M-step.

    Raises:
        ValueError: ``num_steps`` is not positive.
    """

    optim: OptimizerSpec = DEFAULT
    num_steps: int = 1

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {self.num_steps}.")


class _Enough(Exception):
    """The question is answered before the optimiser is done."""


@dataclass
class Ascent:
    """The running M-step of one fit: its optimiser, and how often in a row it failed.

    L-BFGS starts anew each time, since its curvature pairs belong to the previous Q; other optimisers carry their
    moments along. A rejected update halves the learning rate, so that a direction of ascent is found out in the end.

    At a kink in one parameter (the location of a Laplace, on a datum) no step of all of them may gain, though others
    could go on: once that is seen, each update is followed by a climb of one parameter after the other.

    Attributes:
        spec: how Q is raised.
        leaves: unconstrained, by name.
        dtype: what limits the meaning of a change of Q.
        rejections: how often in a row an update was undone.
        undefined: parameters in which the last gradient of the objective was infinite or NaN.
        in_turn: whether parameters are climbed one after the other, too.
    """

    spec: GradientMStep
    leaves: dict[str, Tensor]
    dtype: torch.dtype
    rejections: int = 0
    undefined: tuple[str, ...] = ()
    in_turn: bool = False
    _shrink: float = 1.0
    _optimizer: Optimizer | None = field(default=None, repr=False)

    def maximise(self, q: Callable[[], Tensor], start: float) -> bool:
        """Raise ``q`` in place from its present value ``start``; whether the update was accepted."""
        before = self._copies()
        optimizer = self._ready()
        after = _climb(q, optimizer, self.spec.num_steps)
        if self.in_turn and after >= start:
            after = self._in_turn(q, after)
        if start - rounding(start, self.dtype) <= after < math.inf and self._finite():
            self.rejections = 0
            return True
        self._restore(before)
        self.rejections += 1
        self._shrink *= 0.5
        optimizer.scale_learning_rate(0.5)
        return False

    def can_gain(self, objective: Callable[[], Tensor], nats: float) -> bool:
        """Whether a run of L-BFGS on the objective itself would raise it by this much; the run is undone.

        EM's gains can shrink fast long before they are spent, and an M-step of a few updates can creep far from the
        maximum of Q. Both would pass for convergence to a rule that sees gains only.
        """
        before = self._copies()
        with torch.no_grad():
            start = float(objective())

        self.undefined = self._undefined(objective)
        if self.undefined:
            return False

        def guarded() -> Tensor:
            value = objective()
            if float(value.detach()) - start >= nats:
                raise _Enough
            return value

        try:
            for i, leaves in enumerate(self._parts()):
                try:
                    _climb(guarded, Optimizer(TRIAL, leaves), 1)
                except _Enough:
                    self.in_turn = self.in_turn or i > 0
                    return True
                self._restore(before)
            return False
        finally:
            self._restore(before)
            for leaf in self.leaves.values():
                leaf.grad = None

    def _parts(self) -> Iterator[dict[str, Tensor]]:
        """All leaves, then each on its own."""
        yield self.leaves
        if len(self.leaves) > 1:
            yield from ({name: leaf} for name, leaf in self.leaves.items())

    def _in_turn(self, q: Callable[[], Tensor], value: float) -> float:
        """Climb one leaf after the other; ``q`` where they end."""
        for name, leaf in self.leaves.items():
            before = leaf.detach().clone()
            reached = _climb(q, Optimizer(self.spec.optim, {name: leaf}), self.spec.num_steps)
            if reached >= value and bool(torch.isfinite(leaf).all()):
                value = reached
            else:
                leaf.data.copy_(before)
        return value

    def _undefined(self, objective: Callable[[], Tensor]) -> tuple[str, ...]:
        with torch.enable_grad():
            value = objective()
        if not value.requires_grad:
            return ()
        found = torch.autograd.grad(value, list(self.leaves.values()), allow_unused=True)
        slopes = zip(self.leaves, found, strict=True)
        return tuple(name for name, slope in slopes if slope is not None and not bool(torch.isfinite(slope).all()))

    def _copies(self) -> list[Tensor]:
        return [leaf.detach().clone() for leaf in self.leaves.values()]

    def _restore(self, values: list[Tensor]) -> None:
        for leaf, value in zip(self.leaves.values(), values, strict=True):
            leaf.data.copy_(value)

    def _ready(self) -> Optimizer:
        if self._optimizer is None or isinstance(self._optimizer.torch, torch.optim.LBFGS):
            self._optimizer = Optimizer(self.spec.optim, self.leaves)
            self._optimizer.scale_learning_rate(self._shrink)
        return self._optimizer

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(leaf).all()) for leaf in self.leaves.values())


def _climb(q: Callable[[], Tensor], optimizer: Optimizer, num_steps: int) -> float:
    """Update the optimiser's leaves ``num_steps`` times; ``q`` where they end."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        try:
            with torch.enable_grad():
                loss = -q()
                loss.backward()
        except ValueError as error:
            _raise_unless_outside(error)
            return torch.tensor(math.inf)  # the line search steps back
        return loss.detach()

    for _ in range(num_steps):
        optimizer.step(closure)
    optimizer.zero_grad()
    try:
        with torch.no_grad():
            return float(q())
    except ValueError as error:
        _raise_unless_outside(error)
        return -math.inf


def _raise_unless_outside(error: ValueError) -> None:
    """A trial point may leave the support of the model's distributions, which torch reports as a ValueError.

    Any other exception of the model's arrives as the cause of a :class:`ModelError`, and is the user's to see.
    """
    if isinstance(error, ModelError) and not isinstance(error.__cause__, ValueError):
        raise error
