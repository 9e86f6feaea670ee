"""EM on a model that is known in part: closed forms where there are any, the traced gradient for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from pyro_em.compiled.evaluate import ALL
from pyro_em.compiled.maximise import Maximiser
from pyro_em.compiled.plan import Plan
from pyro_em.compiled.point import AnyFactor, Point, Tally
from pyro_em.em.checks import Prepared
from pyro_em.em.m_step import Ascent, GradientMStep
from pyro_em.em.part import Part
from pyro_em.em.stopping import rounding
from pyro_em.em.traced import TracedEngine, TracedExpectation
from pyro_em.graph import Variable
from pyro_em.params import ParamSpace

__all__ = ["MixedEngine"]


class MixedEngine(TracedEngine):
    """E-steps from runs of the model; M-steps in turn: what statistics decide, then what only gradients can move.

    Each turn raises the same Q over its own parameters, so the whole does (Meng & Rubin 1993).
    """

    def __init__(self, prepared: Prepared, space: ParamSpace, plan: Plan, maximiser: Maximiser, priors: bool) -> None:
        super().__init__(prepared, space, GradientMStep(), tuple(plan.fixed), priors, prepared.at_start)
        self.plan, self.maximiser = plan, maximiser
        free = space.free(tuple(plan.fixed))
        rest = {name: leaf for name, leaf in free.items() if name in plan.gradient}
        self.gradient = Ascent(GradientMStep(), rest, self.dtype)
        self._part, self._is_trusted = Part.of(plan, prepared, space), False

    def maximise(self, expectation: TracedExpectation) -> bool:
        """Raise Q in place: closed forms first."""
        with torch.no_grad():
            theta = self.plan.probed.coordinates.flat(self.space.values())
            tally = self._tally(expectation, theta)
            found = self.plan.model.expectation(tally, 0.0, 0.0)
            moved = self.maximiser.maximise(theta, found.stats, found.pieces).theta
            before = float(self.q(expectation)) if self.plan.has_unknown_path else -torch.inf
            self._hand_over(theta, moved)
            if self.plan.has_unknown_path and float(self.q(expectation)) < before:
                self._hand_over(moved, theta)
        if not self.gradient.leaves:
            return True
        return self._climb(expectation, found.stats) or not torch.equal(theta, moved)

    def _climb(self, expectation: TracedExpectation, stats: tuple[Tensor, ...]) -> bool:
        """Raise Q over the parameters of the gradient, by a part of it once that has gained what the whole does."""
        if self._part is None:
            return self._climb_whole(expectation)
        q = self._part.q(dict(zip(expectation.names, expectation.cliques.weights, strict=True)), stats)
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

    def _tally(self, expectation: TracedExpectation, theta: Tensor) -> Tally:
        """Expected statistics of the known sites under the posterior of all."""
        model = self.plan.model
        tally = Tally.of(Point.at(theta, model.books, model.coordinates))
        weights = dict(zip(expectation.names, expectation.cliques.weights, strict=True))
        for factor in model.factors:
            tally.add(factor, self._posterior(factor, weights), ALL)
        return tally

    def _posterior(self, factor: AnyFactor, weights: Mapping[str, Tensor]) -> Tensor:
        """The posterior of a factor's states, shape (rows, K)."""
        plates = self._plates[factor.name]
        if factor.stack is None:
            return _by_rows(factor, weights[factor.name], plates)
        stack, found = factor.stack, []
        for name in stack.members:
            scope = self._scopes[name]
            axes = stack.frames.seat(scope).axes
            order = sorted(range(len(scope)), key=axes.__getitem__)
            weight, start = weights[name], weights[name].dim() - len(scope)
            found.append(weight.permute([*range(start), *(start + i for i in order)]))
        own = {p.name for p in stack.frames.plates}
        inner = [i for i, name in enumerate(plates[:-1]) if name not in own]
        whole = torch.stack([w.amax(inner) if inner else w for w in found], len(own))
        gone = [i for i, p in enumerate((*stack.frames.plates, stack.time)) if p not in factor.plates]
        return (whole.sum(gone) if gone else whole).reshape(factor.num_rows, factor.num_states)

    @cached_property
    def _scopes(self) -> dict[str, tuple[Variable, ...]]:
        return {f.name: f.scope for f in self.prepared.graph.factors}

    @cached_property
    def _plates(self) -> dict[str, tuple[str, ...]]:
        return {
            s.name: tuple(p.name for p in s.parts.plates)
            for s in self.plan.probed.sites.values()
            if not isinstance(s.parts, str)
        }


def _value(q: Callable[[], Tensor]) -> float:
    with torch.no_grad():
        return float(q())


def _by_rows(factor: AnyFactor, weight: Tensor, plates: tuple[str, ...]) -> Tensor:
    """A clique's posterior over (*plates, *scope) as (rows, states); it is the same along inner plates, but where a
    mask hides some of them.
    """
    own = {p.name for p in factor.plates}
    if weight.dim() == 0:
        return weight.expand(factor.num_rows, factor.num_states)
    inner = [i for i, name in enumerate(plates) if name not in own]
    weight = weight.amax(inner) if inner else weight
    return weight.reshape(factor.num_rows, factor.num_states)
