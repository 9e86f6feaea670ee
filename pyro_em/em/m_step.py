"""The gradient M-step: raise Q with the posterior held fixed, by any optimiser.

Q(theta) = E_q[log p(x, z; theta)] is traced afresh at every evaluation, so whatever the model computes is
differentiated. At the parameters of the E-step its gradient equals that of the log evidence (Fisher's identity).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_em.checked import check_count
from pyro_em.em.climb import Climber, Counted, climb, only, raise_unless_outside
from pyro_em.em.stopping import rounding
from pyro_em.em.units import MANY as FEW
from pyro_em.em.units import InUnits, are_uneven, flat, look
from pyro_em.optim import TRIAL, Optimizer, OptimizerSpec, climbing

__all__ = ["Ascent", "GradientMStep"]

DEFAULT = functools.partial(climbing, max_iter=20, tolerance_grad=1e-8, tolerance_change=1e-10)


@dataclass(frozen=True)
class GradientMStep:
    """Raise Q by ``num_steps`` updates of an optimiser; an update sequence that lowers Q is undone.

    Args:
        optim: a ``pyro.optim`` object, or a callable that makes a torch optimiser from parameters, such as
            ``partial(torch.optim.Adam, lr=1e-2)``. Default: L-BFGS with a strong-Wolfe line search, at most 20
            iterations, of at most 64 parameters in units in which Q curves alike in all directions; where Q must be
            maximised to the last digit, pass one with a larger ``max_iter``. L-BFGS over float64 parameters is shown as
            many digits as no order of summation changes (see :mod:`pyro_em.em.rounded`).
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
LONG = 20  # evaluations, after which a climb by the default optimiser has run into its cap
AT_ONCE = 20  # evaluations, for which units are looked for before the first climb


class _Enough(Exception):
    """The question is answered before the optimiser is done."""


@dataclass
class Ascent:
    """The running M-step of one fit: its optimiser, and how often in a row it failed.

    L-BFGS starts anew each time, since its curvature pairs belong to the previous Q; other optimisers carry their
    moments along. A rejected update halves the learning rate, so that a direction of ascent is found out in the end.

    The default optimiser climbs few parameters in units of their own (see :mod:`pyro_em.em.units`), which are looked
    for where a climb has not come to its end, at most as often as the evaluations that this takes are spent on climbs.

    At a kink in one element (the location of a Laplace, on a datum) no step of all of them may gain, though others
    could go on: once that is seen, each update is followed by a climb of one element after the other.

    Attributes:
        spec: how Q is raised.
        leaves: unconstrained, by name.
        dtype: what limits the meaning of a change of Q.
        rejections: how often in a row an update was undone.
        undefined: parameters in which the last gradient of the objective was infinite or NaN.
        in_turn: whether elements of parameters are climbed one after the other, too.
        units: in which all are climbed; ``None``, their own.
    """

    spec: GradientMStep
    leaves: dict[str, Tensor]
    dtype: torch.dtype
    rejections: int = 0
    undefined: tuple[str, ...] = ()
    in_turn: bool = False
    units: Tensor | None = None
    _shrink: float = 1.0
    _is_new: bool = True
    _spent: float = 0.0  # evaluations since units were looked for, by climbs without an end
    _optimizer: Climber | None = field(default=None, repr=False)

    def maximise(self, q: Callable[[], Tensor], start: float) -> bool:
        """Raise ``q`` in place from its present value ``start``; whether the update was accepted."""
        before = self._copies()
        if self.spec.optim is DEFAULT:
            self._see(q)
        optimizer, counted = self._ready(), Counted(q)
        after = climb(counted, optimizer, self.spec.num_steps)
        self._spent += counted.calls if counted.calls > LONG else 0
        if self.in_turn and after >= start:
            after = self._in_turn(q, after)
        if start - rounding(start, self.dtype) <= after < math.inf and self._finite():
            self.rejections = 0
            return True
        self._restore(before)
        self.rejections += 1
        self._shrink *= 0.5
        optimizer.scale_learning_rate(0.5)
        self.see_anew()
        return False

    def _see(self, q: Callable[[], Tensor]) -> None:
        """Look for units, where that is due; unless a climb has failed, only such as are far from alike are taken."""
        is_first, self._is_new = self._is_new and 2 * self._size <= AT_ONCE, False
        if not is_first and self._spent < 2 * self._size:
            return
        found, has_failed, self._spent = self._look(q), self._spent == math.inf, 0.0
        if found is not None and (has_failed or self.units is not None or are_uneven(found)):
            self.units = found

    def see_anew(self) -> None:
        """Look for units at the next update."""
        self._spent = math.inf

    def can_gain(self, objective: Callable[[], Tensor], nats: float, keep: bool = False) -> bool:
        """Whether a run of L-BFGS on the objective itself would raise it by this much.

        EM's gains can shrink fast long before they are spent, and an M-step of a few updates can creep far from the
        maximum of Q. Both would pass for convergence to a rule that sees gains only.

        Args:
            keep: whether to stay where the run ends, if it gains so much; else it is undone.
        """
        before, stays = self._copies(), False
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
            units = self._look(objective)
            reached = climb(objective if keep else guarded, self._optimizer_of(TRIAL, units), 1)
            if start + nats <= reached < math.inf:
                raise _Enough
            return self._is_at_a_kink(objective, units) and self._one_can(guarded, before)
        except _Enough:
            self.see_anew()
            stays = keep
            return True
        finally:
            if not stays:
                self._restore(before)
            for leaf in self.leaves.values():
                leaf.grad = None

    def _is_at_a_kink(self, objective: Callable[[], Tensor], units: Tensor | None) -> bool:
        """Whether there still is a slope where a climb has come to its end."""
        slope = self._slope(objective)
        if slope is not None and units is not None:
            slope = units.T @ slope
        return slope is not None and bool((slope.abs() > STEEP).any())

    def _one_can(self, guarded: Callable[[], Tensor], before: list[Tensor]) -> bool:
        """Whether a climb of one element alone gets far enough."""
        for leaf, element in self._elements():
            self._restore(before)
            try:
                with only(leaf, element):
                    climb(guarded, Optimizer(TRIAL, {"": leaf}), 1)
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
            with only(leaf, element):
                reached = climb(q, Optimizer(self.spec.optim, {"": leaf}), self.spec.num_steps)
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

    def _slope(self, objective: Callable[[], Tensor]) -> Tensor | None:
        """The gradient in all leaves as one vector, float64; ``None`` where there is none, or none that is finite."""
        try:
            slopes = self._slopes(objective)
        except ValueError as error:
            raise_unless_outside(error)
            return None
        pairs = zip(slopes, self.leaves.values(), strict=True)
        found = flat([torch.zeros_like(leaf) if slope is None else slope for slope, leaf in pairs])
        return found if bool(found.isfinite().all()) else None

    @property
    def _size(self) -> int:
        """Number of coordinates."""
        return sum(leaf.numel() for leaf in self.leaves.values())

    def _look(self, objective: Callable[[], Tensor]) -> Tensor | None:
        """Units of few coordinates, where the leaves are."""
        if not 0 < self._size <= FEW:
            return None
        leaves = list(self.leaves.values())
        known = torch.diag(torch.ones_like(flat(leaves))) if self.units is None else self.units
        return look(lambda: self._slope(objective), leaves, known)

    def _copies(self) -> list[Tensor]:
        return [leaf.detach().clone() for leaf in self.leaves.values()]

    def _restore(self, values: list[Tensor]) -> None:
        for leaf, value in zip(self.leaves.values(), values, strict=True):
            leaf.data.copy_(value)

    def _ready(self) -> Climber:
        if self._optimizer is None or isinstance(self._optimizer.torch, torch.optim.LBFGS):
            self._optimizer = self._optimizer_of(self.spec.optim, self.units)
            self._optimizer.scale_learning_rate(self._shrink)
        return self._optimizer

    def _optimizer_of(self, spec: OptimizerSpec, units: Tensor | None) -> Climber:
        return Optimizer(spec, self.leaves) if units is None else InUnits(spec, list(self.leaves.values()), units)

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(leaf).all()) for leaf in self.leaves.values())
