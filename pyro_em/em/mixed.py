"""EM on a model that is known in part: closed forms where there are any, the traced gradient for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, reduce
from operator import add

import torch
from torch import Tensor

from pyro_em.compiled import Expectation
from pyro_em.compiled.drop import Element, maximised
from pyro_em.compiled.evaluate import ALL
from pyro_em.compiled.maximise import Maximiser
from pyro_em.compiled.plan import Plan
from pyro_em.compiled.point import AnyFactor, Point, Tally
from pyro_em.em.batched import BatchedModel, Passes
from pyro_em.em.checks import Prepared
from pyro_em.em.expectation import Posterior, TracedExpectation
from pyro_em.em.m_step import Ascent, GradientMStep
from pyro_em.em.part import Part
from pyro_em.em.shares import whole
from pyro_em.em.stopping import rounding
from pyro_em.em.traced import TracedEngine
from pyro_em.graph import Variable
from pyro_em.graph.frames import Frames
from pyro_em.params import ParamSpace

__all__ = ["MixedEngine"]


class MixedEngine(TracedEngine):
    """E-steps from runs of the model; M-steps in turn: what statistics decide, then what only gradients can move.

    Each turn raises the same Q over its own parameters, so the whole does (Meng & Rubin 1993).
    """

    def __init__(
        self,
        prepared: Prepared,
        space: ParamSpace,
        plan: Plan,
        maximiser: Maximiser,
        priors: bool,
        drops: bool,
        batches: BatchedModel | None = None,
    ) -> None:
        shares = whole(prepared) if batches is None else batches.stream
        at_start = prepared.at_start if batches is None else None
        super().__init__(prepared, space, GradientMStep(), tuple(plan.fixed), priors, shares, at_start)
        self.plan, self.maximiser, self.drops, self.batches = plan, maximiser, drops, batches
        rest = {name: leaf for name, leaf in self.ascent.leaves.items() if name in plan.gradient}
        self.gradient = Ascent(GradientMStep(), rest, self.dtype)
        self._part, self._is_trusted, self._gone = Part.of(plan, space), False, frozenset[Element]()

    def maximise(self, expectation: TracedExpectation) -> bool:
        """Raise Q in place: closed forms first.

        Raises:
            DegenerateError: a component of a closed form collapsed, and is neither held nor dropped.
        """
        with torch.no_grad():
            theta = self._theta()
            lifted = self.maximiser.is_held(theta, 1 - 1e-6)  # the floor lifts a start below it
            found = self._statistics(expectation, theta)
            given = self.maximiser, self.plan.model, theta, found
            reached, dropped = maximised(*given, self.ascent.leaves, self.drops)
            moved, self.breaks = reached.theta, lifted or not dropped <= self._gone
            self._gone |= dropped  # their states keep a last trace of probability, as the program knows no zero
            before = float(self.q(expectation)) if self.plan.has_unknown_path else -torch.inf
            self._hand_over(theta, moved)
            if self.plan.has_unknown_path and float(self.q(expectation)) < before:
                self._hand_over(moved, theta)
        if not self.gradient.leaves:
            return True
        return self._climb(expectation, found.stats) or not torch.equal(theta, moved)

    def can_gain(self, nats: float, keep: bool = False) -> bool:
        """Whether L-BFGS on the objective itself would raise it by this much; and, with ``keep``, stay there."""
        if self.is_held():
            return False  # at a floor the objective has an edge, which a climb would step over
        found = super().can_gain(nats, keep)
        self.gradient.in_turn = self.ascent.in_turn
        if found:
            self.gradient.see_anew()
        return found

    @property
    def climbing(self) -> Ascent:
        """The M-step of what the gradient moves."""
        return self.gradient

    def is_held(self) -> bool:
        """Whether a spread is at the floor that ``on_degenerate`` asked for, or below."""
        return self.maximiser.is_held(self._theta())

    def _theta(self) -> Tensor:
        return self.plan.probed.coordinates.flat(self.space.values())

    def _climb(self, expectation: TracedExpectation, stats: tuple[Tensor, ...]) -> bool:
        """Raise Q over the parameters of the gradient, by a part of it once that has gained what the whole does."""
        if self._part is None:
            return self._climb_whole(expectation)
        q = self._part.q(lambda: zip(self.shares, self.posteriors(expectation), strict=False), stats)
        if self._is_trusted:
            return self.gradient.maximise(q, _value(q))
        before = {name: leaf.detach().clone() for name, leaf in self.gradient.leaves.items()}
        whole, part = _value(lambda: self.q(expectation)), _value(q)
        accepted = self.gradient.maximise(q, part)
        gains = _value(lambda: self.q(expectation)) - whole, _value(q) - part
        if math.isclose(*gains, rel_tol=1e-4, abs_tol=rounding(whole, self.dtype)):
            self._is_trusted = accepted and gains[0] > rounding(whole, self.dtype)
            return accepted
        for name, leaf in self.gradient.leaves.items():
            leaf.data.copy_(before[name])
        self._part = None
        return self._climb_whole(expectation)

    def _climb_whole(self, expectation: TracedExpectation) -> bool:
        return self.gradient.maximise(lambda: self.q(expectation), _value(lambda: self.q(expectation)))

    def _hand_over(self, theta: Tensor, moved: Tensor) -> None:
        old, new = self.plan.probed.coordinates.split(theta), self.plan.probed.coordinates.split(moved)
        self.space.assign_nearest({name: v for name, v in new.items() if not torch.equal(v, old[name])})

    def _statistics(self, expectation: TracedExpectation, theta: Tensor) -> Expectation:
        """Expected statistics of the known sites under the posterior of all."""
        parts = self._parts(expectation, theta)
        if self.batches is None:
            return next(parts)
        pieces = Passes(lambda: (piece for part in self._parts(expectation, theta) for piece in part.pieces))
        return replace(reduce(add, parts), pieces=pieces)

    def _parts(self, expectation: TracedExpectation, theta: Tensor) -> Iterator[Expectation]:
        """The same, share by share."""
        for share, posterior in zip(self.shares, self.posteriors(expectation), strict=False):
            model = self.plan.model if self.batches is None else self.batches.of(share)
            tally = Tally.of(Point.at(theta, model.books, model.coordinates))
            for factor in model.factors:
                tally.add(factor, self._states(factor, posterior), ALL)
            yield model.expectation(tally, 0.0, 0.0)

    def _states(self, factor: AnyFactor, posterior: Posterior) -> Tensor:
        """The posterior of a factor's states, shape (rows, K)."""
        plates = self._plates[factor.name]
        if factor.stack is None:
            weight = _once(posterior.cliques[factor.name], plates, [p.name for p in factor.plates], posterior.weights)
            shape = factor.num_rows, factor.num_states
            return weight.reshape(shape) if weight.dim() else weight.expand(shape)
        stack, found = factor.stack, []
        places = _places(stack.frames)
        own = [p.name for p in stack.frames.plates]
        for name in stack.members:
            scope = self._scopes[name]
            axes = stack.frames.seat([places[v] for v in scope]).axes
            order = sorted(range(len(scope)), key=axes.__getitem__)
            weight = posterior.cliques[name]
            start = weight.dim() - len(scope)
            weight = weight.permute([*range(start), *(start + i for i in order)])
            found.append(_once(weight, plates[:-1], own, posterior.weights))
        whole = torch.stack(found, len(own))
        gone = [i for i, p in enumerate((*stack.frames.plates, stack.time)) if p not in factor.plates]
        return (whole.sum(gone) if gone else whole).reshape(factor.num_rows, factor.num_states)

    @cached_property
    def _scopes(self) -> dict[str, tuple[str, ...]]:
        """By site, its variables, which are the same in all shares but for the sizes of their plates."""
        return {f.name: tuple(v.name for v in f.scope) for f in self.prepared.graph.factors}

    @cached_property
    def _plates(self) -> dict[str, tuple[str, ...]]:
        return {
            s.name: tuple(p.name for p in s.parts.plates)
            for s in self.plan.probed.sites.values()
            if not isinstance(s.parts, str)
        }


def _places(frames: Frames) -> dict[str, Variable]:
    """The variables of a chain by name."""
    return {v.name: v for v in (*frames.hubs, *(v for frame in frames.frames for v in frame))}


def _value(q: Callable[[], Tensor]) -> float:
    with torch.no_grad():
        return float(q())


def _once(weight: Tensor, plates: Sequence[str], own: Collection[str], by_plate: Mapping[str, Tensor]) -> Tensor:
    """A clique's posterior over (*plates, *scope) without inner plates: it is the same along these, but where a mask
    hides some of their elements, and but for their weights, which count with the elements of the data.

    Args:
        own: the plates that stay.
        by_plate: weights of elements.
    """
    inner = [i for i, name in enumerate(plates) if name not in own] if weight.dim() else []
    for i in (i for i in inner if plates[i] in by_plate):
        often = by_plate[plates[i]].reshape([-1 if axis == i else 1 for axis in range(weight.dim())])
        weight = torch.where(often > 0, weight / often, 0.0)
    return weight.amax(inner) if inner else weight
