"""Raise the bound of a guide with free arguments, and end no lower than it began."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_em.diagnostics.bound import Arguments, log_ratio
from pyro_em.diagnostics.refine import FreeGuide
from pyro_em.strategy import Inference

__all__ = ["Rise", "climb", "rise"]

FIRST_STEP = 0.1
STAGES = 10
CHECKS = 20  # draws that a stage is judged by
DECAY = 0.3  # of the step, where a stage ends lower than one before
CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Rise:
    """How much higher one bound lies than another, nats, and the standard error of that."""

    mean: float
    stderr: float

    def falls(self, errors: float) -> bool:
        """Whether it lies lower by more than so many standard errors, or is not finite."""
        return not self.mean >= -errors * self.stderr


def rise(before: Tensor, after: Tensor) -> Rise:
    """Compare draws of two bounds, made of the same random numbers."""
    gains = after - before
    return Rise(float(gains.mean()), float(gains.std() / len(gains) ** 0.5))


def climb(free: FreeGuide, inference: Inference, data: Arguments, steps: int) -> bool:
    """Raise the bound by Adam, with steps that shrink to nothing; whether any stage raised it, or the last one left it.

    After each of ten stages the bound is held against the best so far, at the same random numbers. Where it has clearly
    fallen, as it does where steps are too long for many arguments that act together, the climb goes back to the best
    and on by shorter steps. It ends at the best.
    """
    check = partial(_at, get_rng_state(), partial(log_ratio, inference, free, data))
    best, values = _point(free), check()
    rate, rose, fell = FIRST_STEP, False, False
    optimizer = torch.optim.Adam(free.steps)
    for stage in _stages(steps):
        for i in stage:
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * i / steps)) / 2
            _step(free, inference, data, optimizer)
        now = check()
        change = rise(values, now)
        fell = change.falls(CLEAR)
        if change.mean >= 0:
            best, values, rose = _point(free), now, True
        elif fell:
            _move(free, best)
            rate, optimizer = DECAY * rate, torch.optim.Adam(free.steps)
    _move(free, best)
    return rose or not fell


def _stages(steps: int) -> list[range]:
    length = max(-(-steps // STAGES), 1)
    return [range(i, min(i + length, steps)) for i in range(0, steps, length)]


def _step(free: FreeGuide, inference: Inference, data: Arguments, optimizer: torch.optim.Adam) -> None:
    """Gradients follow the draws alone, not the density they are scored by: that part is zero in expectation, and
    without it the noise vanishes where q is the posterior (Roeder, Wu & Duvenaud 2017).
    """
    with torch.enable_grad():
        value = log_ratio(inference, free, data, free.scored())
        found = torch.autograd.grad(-value, free.steps, allow_unused=True)
    for step, grad in zip(free.steps, found, strict=True):
        step.grad = grad
    optimizer.step()


def _at(state: dict[str, object], value: Callable[[], Tensor]) -> Tensor:
    """Draws of a bound from one state of the random stream, which then goes on as if there had been none."""
    outside = get_rng_state()
    set_rng_state(state)
    with torch.no_grad():
        values = torch.stack([value() for _ in range(CHECKS)])
    set_rng_state(outside)
    return values


def _point(free: FreeGuide) -> list[Tensor]:
    return [step.detach().clone() for step in free.steps]


def _move(free: FreeGuide, point: list[Tensor]) -> None:
    for step, value in zip(free.steps, point, strict=True):
        step.data.copy_(value)
