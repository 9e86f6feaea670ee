"""The gradient M-step: raise Q with the posterior held fixed, by any optimiser.

Q(theta) = E_q[log p(x, z; theta)] is traced afresh at every evaluation, so whatever the model computes is
differentiated. At the parameters of the E-step its gradient equals that of the log evidence (Fisher's identity).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_em.checked import check_count
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
        check_count("num_steps", self.num_steps)


STEEP = 1e-3  # nats per unit of an unconstrained coordinate
MANY = 32  # elements of a leaf that are climbed one by one


@contextmanager
def _only(leaf: Tensor, element: int | None) -> Iterator[None]:
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


class _Enough(Exception):
    """The question is answered before the optimiser is done."""


@dataclass
class Ascent:
    """The running M-step of one fit: its optimiser, and how often in a row it failed.

    L-BFGS starts anew each time, since its curvature pairs belong to the previous Q; other optimisers carry their
    moments along. A rejected update halves the learning rate, so that a direction of ascent is found out in the end.

    At a kink in one element (the location of a Laplace, on a datum) no step of all of them may gain, though others
    could go on: once that is seen, each update is followed by a climb of one element after the other.

    Attributes:
        spec: how Q is raised.
        leaves: unconstrained, by name.
        dtype: what limits the meaning of a change of Q.
        rejections: how often in a row an update was undone.
        undefined: parameters in which the last gradient of the objective was infinite or NaN.
        in_turn: whether elements of parameters are climbed one after the other, too.
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
            _climb(guarded, Optimizer(TRIAL, self.leaves), 1)
            return self._is_at_a_kink(objective) and self._one_can(guarded, before)
        except _Enough:
            return True
        finally:
            self._restore(before)
            for leaf in self.leaves.values():
                leaf.grad = None

    def _is_at_a_kink(self, objective: Callable[[], Tensor]) -> bool:
        """Whether there still is a slope where a climb has come to its end."""
        slopes = [s for s in self._slopes(objective) if s is not None]
        return any(bool((s.abs() > STEEP).any()) for s in slopes)

    def _one_can(self, guarded: Callable[[], Tensor], before: list[Tensor]) -> bool:
        """Whether a climb of one element alone gets far enough."""
        for leaf, element in self._elements():
            self._restore(before)
            try:
                with _only(leaf, element):
                    _climb(guarded, Optimizer(TRIAL, {"": leaf}), 1)
            except _Enough:
                self.in_turn = True
                return True
        return False

    def _elements(self) -> Iterator[tuple[Tensor, int | None]]:
        """Each element of small leaves, larger ones whole."""
        for leaf in self.leaves.values():
            yield from ((leaf, i) for i in range(leaf.numel())) if 1 < leaf.numel() <= MANY else [(leaf, None)]

    def _in_turn(self, q: Callable[[], Tensor], value: float) -> float:
        """Climb one element after the other; ``q`` where they end."""
        for leaf, element in self._elements():
            before = leaf.detach().clone()
            with _only(leaf, element):
                reached = _climb(q, Optimizer(self.spec.optim, {"": leaf}), self.spec.num_steps)
            if reached >= value and bool(torch.isfinite(leaf).all()):
                value = reached
            else:
                leaf.data.copy_(before)
        return value

    def _undefined(self, objective: Callable[[], Tensor]) -> tuple[str, ...]:
        slopes = zip(self.leaves, self._slopes(objective), strict=True)
        return tuple(name for name, slope in slopes if slope is not None and not bool(torch.isfinite(slope).all()))

    def _slopes(self, objective: Callable[[], Tensor]) -> Sequence[Tensor | None]:
        with torch.enable_grad():
            value = objective()
        if not value.requires_grad:
            return [None] * len(self.leaves)
        return torch.autograd.grad(value, list(self.leaves.values()), allow_unused=True)

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
                if loss.requires_grad:
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
