"""What an M-step must know of a family of distributions: pure tensor maths, no Pyro program in sight.

A family writes its log-density as

    log f(x | args) = sum_s coefficients(args)[s] * features(x)[s] + coefficients(args)[-1] + base_measure(x)

so that an E-step is one matrix product of features and coefficients, and all that an M-step needs are the expected
features and the expected count, pooled over every element that shares its arguments: a *cell*. Tied parameters make
several cells share one value of an argument: a *group*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Argument", "Augmented", "Cells", "Family", "expected_log_likelihood", "log_or_never"]


@dataclass(frozen=True)
class Argument:
    """One argument of a family, in the parameterisation its mathematics is written in.

    Attributes:
        name: what the family's functions call it.
        rank: its event dimensions: 0 for a number, 1 for a vector, 2 for a matrix.
        domain: where it may lie.
        location: whether shifting the data shifts it by as much, so that data may be centred first.
        spread: whether the likelihood grows without bound as it shrinks to nothing about one datum.
        concentration: whether it does so as this and all others like it grow; a positive number, or several.
        largest: of a positive number, beyond which the density has come to its limit, and what still moves is the
            rounding of its normaliser: Newton's method goes no further.
    """

    name: str
    rank: int = 0
    domain: Any = constraints.real
    location: bool = False
    spread: bool = False
    concentration: bool = False
    largest: float = math.inf

    @property
    def is_numeric(self) -> bool:
        """Whether no family solves for it: a concentration, or what has a limit."""
        return self.concentration or self.largest < math.inf


@dataclass(frozen=True)
class Cells:
    """Expected statistics, one row per cell, as the maximiser of one argument sees them.

    Attributes:
        stats: shape (C, S + 1), float64: expected features, and last the expected count.
        args: all arguments at present, each of shape (C, *block).
        group: shape (C,): which value of the argument each cell uses; ``None`` where every cell has its own.
        size: number of groups G.
        pseudo: what a conjugate prior adds, shape (G, ...), in the family's own terms; ``None`` without one.
    """

    stats: Tensor
    args: Mapping[str, Tensor]
    group: Tensor | None
    size: int
    pseudo: Tensor | None = None

    def pool(self, values: Tensor) -> Tensor:
        """Sums over the cells of each group: from (C, ...) to (G, ...)."""
        if self.group is None:
            return values
        return values.new_zeros(self.size, *values.shape[1:]).index_add_(0, self.group, values)

    def spread(self, values: Tensor) -> Tensor:
        """Each cell's value of its group: from (G, ...) to (C, ...)."""
        return values if self.group is None else values[self.group]


class Family(Protocol):
    """A family of distributions. Instances are frozen and hold sizes only; equal instances share parameters.

    Attributes:
        args: its arguments.
        rank: event dimensions of one datum as :meth:`data` returns it.
    """

    args: ClassVar[tuple[Argument, ...]]
    rank: ClassVar[int]

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        """The instance for a torch distribution (innermost, without wrappers) and the values it scores."""
        ...

    def join(self, other: Family) -> Family:
        """The instance that serves the data of both."""
        ...

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        """Its canonical arguments, each of shape (*batch, *block); batch dimensions may be broadcast."""
        ...

    def data(self, fn: Any, value: Tensor) -> Tensor:
        """What the other methods call x, of shape (*batch, *event); an ``event`` of ``rank`` dimensions."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """From x of shape (*event, ...) to the sufficient statistics T(x), shape (S, ...)."""
        ...

    def base_measure(self, x: Tensor) -> Tensor:
        """From x of shape (*event, ...) to the part of log f that no argument touches, shape (...)."""
        ...

    def coefficients(self, *_: Any, **args: Any) -> Tensor:
        """From arguments (..., *block) to what multiplies the features, and last the constant: shape (..., S + 1)."""
        ...

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        """The argument ``name`` that maximises the expected log-likelihood given the others, shape (G, *block).

        ``None`` where there is no closed form; Newton's method takes over. Groups without any count may come out as
        NaN.
        """
        ...

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        """What a prior on g^-1(argument) adds to the statistics, shape (*prior.batch_shape, ...); ``None`` if not
        conjugate. ``link`` names g.
        """
        ...


class Augmented(Protocol):
    """A family that is itself a mixture: its features depend on its present arguments (an inner E-step).

    With ``coefficients`` it gives a bound of the log-density that touches at the present arguments, so a step that
    raises the bound raises the density (a generalised EM step).
    """

    augmented: ClassVar[bool]

    def augment(self, x: Tensor, **args: Tensor) -> Tensor:
        """Expected features at the present arguments; x and arguments broadcast; shape (S, ...)."""
        ...

    def log_prob(self, x: Tensor, **args: Tensor) -> Tensor:
        """The log-density itself, without the base measure; shape (...)."""
        ...


# The logarithm of what cannot be: finite, so that nothing times it is nothing, and beyond any data.
LOG_ZERO = -1e30


def log_or_never(x: Tensor) -> Tensor:
    """log x, and ``LOG_ZERO`` for zero, where its gradient is zero too and not NaN."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x.log().clamp_min(LOG_ZERO)
    possible = x > 0
    return torch.where(possible, torch.where(possible, x, 1.0).log(), LOG_ZERO)


def expected_log_likelihood(family: Family, stats: Tensor, args: Mapping[str, Tensor]) -> Tensor:
    """E[log f] of each cell without the base measure, in nats: shape (C,); nothing times minus infinity is nothing."""
    coefficients = family.coefficients(**args)
    return torch.where(stats == 0, 0.0, coefficients * stats).sum(-1)
