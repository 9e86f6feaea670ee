"""EM: coordinate ascent on L(theta, q), with q the exact posterior.

E-step: q = p(z | x; theta), so that L = log p(x; theta). M-step: raise Q(theta) = E_q[log p(x, z; theta)]. Since
log p(x; theta') - log p(x; theta) >= Q(theta') - Q(theta), any M-step that does not lower Q does not lower the
objective (Dempster, Laird & Rubin 1977, theorem 1), and one that does is undone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Literal

import pyro
import torch
from torch import Tensor

from pyro_em.em.checks import Arguments, prepare
from pyro_em.em.inference import ExactInference
from pyro_em.em.m_step import Ascent, GradientMStep
from pyro_em.em.stopping import WINDOW, remaining_gain, resolution, rounding
from pyro_em.errors import DecreaseError, StartError
from pyro_em.graph import (
    Cliques,
    FactorGraph,
    Intervention,
    clique_posteriors,
    expected_log_joint,
    informed_weights,
    log_evidence,
)
from pyro_em.problem import Problem
from pyro_em.status import Status
from pyro_em.strategy import Evaluation, ObjectiveKind, StepInfo

__all__ = ["EM", "EMState"]


@dataclass(frozen=True)
class EMState:
    """What the next iteration needs: the posterior at the present parameters, and the recent gains."""

    step: int
    status: Status
    objective: float
    cliques: Cliques
    data: Arguments
    intervention: Intervention
    inference: ExactInference
    ascent: Ascent
    stochastic: bool
    gains: tuple[float, ...] = ()
    next_check: int = 0


@dataclass(frozen=True, kw_only=True)
class EM:
    """Expectation-maximisation with an exact, enumerated E-step.

    Every latent with finite support is summed out; global continuous latents are point-estimated together with the
    parameters. The objective never falls. Where a plate draws a random subsample, it is held through one E- and M-step
    and drawn anew for the next: the objective is then an estimate, no stopping rule applies, and there is no log
    evidence.

    Args:
        max_steps: cap on iterations; 0 evaluates the start.
        tol: stop when the estimated remaining gain, in total nats, is below this (Aitken extrapolation). 0 runs all
            ``max_steps``.
        m_step: the gradient M-step; ``None`` is L-BFGS run to the maximum of Q.
        priors: whether the densities of point-estimated latents count (MAP); ``False`` gives maximum likelihood.
        fixed: names of parameters that stay as they start, to the bit.
        on_decrease: what to do when the objective falls by more than rounding: ``"raise"``, ``"warn"`` and go on, or
            ``"revert"`` to the parameters before and stop.

    Raises:
        ValueError: a hyperparameter out of range.

    Source: Dempster, Laird & Rubin (1977), "Maximum likelihood from incomplete data via the EM algorithm".
    """

    max_steps: int = 1000
    tol: float = 1e-3
    m_step: GradientMStep | None = None
    priors: bool = True
    fixed: tuple[str, ...] = ()
    on_decrease: Literal["raise", "warn", "revert"] = "raise"
    _ascent: GradientMStep = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"max_steps must not be negative; got {self.max_steps}.")
        if not self.tol >= 0:
            raise ValueError(f"tol is in nats and must not be negative; got {self.tol}.")
        if self.on_decrease not in ("raise", "warn", "revert"):
            raise ValueError(f"on_decrease must be 'raise', 'warn' or 'revert'; got {self.on_decrease!r}.")
        if self.m_step is not None and not isinstance(self.m_step, GradientMStep):
            raise TypeError(f"m_step must be a GradientMStep or None; got {type(self.m_step).__name__}.")
        object.__setattr__(self, "fixed", (self.fixed,) if isinstance(self.fixed, str) else tuple(self.fixed))
        object.__setattr__(self, "_ascent", self.m_step or GradientMStep())

    def init(self, problem: Problem) -> EMState:
        """Check the model, put the start in place and make the first E-step."""
        prepared = prepare(problem)
        leaves = problem.space.free(self.fixed)
        ascent = Ascent(self._ascent, leaves, _coarsest(leaves))
        state = EMState(
            step=0,
            status=Status.RUNNING,
            objective=float("nan"),
            cliques=Cliques(float("nan"), 0.0, ()),
            data=prepared.data,
            intervention=prepared.intervention,
            inference=prepared.inference,
            ascent=ascent,
            stochastic=prepared.stochastic,
        )
        state = self._expect(prepared.graph, state)
        if not torch.isfinite(torch.tensor(state.objective)):
            raise StartError(
                f"The objective at the start is {state.objective}. No step can improve on it: check the data for "
                "values outside the support, and give init= values under which every datum is possible."
            )
        return state if leaves else replace(state, status=Status.CONVERGED)

    def step(self, problem: Problem, state: EMState) -> tuple[EMState, StepInfo]:
        """One iteration: M-step with the posterior at hand, then E-step at the new parameters."""
        before = problem.space.snapshot()
        with pyro.validation_enabled(False):  # the first run was validated
            accepted = self._m_step(state)
            if state.stochastic:
                state.intervention.subsample.clear()
            new = self._e_step(state) if accepted or state.stochastic else state
            new = self._judge(problem, state, replace(new, step=state.step + 1), before, accepted)
        return new, StepInfo(new.step, new.objective)

    def evaluate(self, problem: Problem, state: EMState) -> Evaluation:
        """The objective of the parameters in place; under subsampled plates, of the last subsample."""
        evidence = None if state.stochastic else state.cliques.log_evidence
        kind: ObjectiveKind = "log_joint" if self._counts_priors(state) else "log_evidence"
        return Evaluation(state.objective, kind, evidence)

    def _counts_priors(self, state: EMState) -> bool:
        return self.priors and bool(state.inference.program.priors)

    def _e_step(self, state: EMState) -> EMState:
        with torch.no_grad():
            graph = state.inference.graph(*state.data, state.intervention)
        return self._expect(graph, state)

    def _expect(self, graph: FactorGraph, state: EMState) -> EMState:
        cliques = clique_posteriors(graph)
        cliques = replace(cliques, weights=informed_weights(graph, cliques.weights))
        prior = float(graph.log_prior()) if self._counts_priors(state) else 0.0
        return replace(state, cliques=cliques, objective=cliques.log_evidence + prior)

    def _q(self, state: EMState) -> Tensor:
        """Q at the parameters in place, under the posterior of ``state``."""
        graph = state.inference.graph(*state.data, state.intervention)
        value = expected_log_joint(graph, state.cliques.weights)
        return value + graph.log_prior() if self._counts_priors(state) else value

    def _objective(self, state: EMState) -> Tensor:
        """What EM climbs, differentiable: the log evidence, with priors where they count."""
        graph = state.inference.graph(*state.data, state.intervention)
        value = log_evidence(graph)
        return value + graph.log_prior() if self._counts_priors(state) else value

    def _m_step(self, state: EMState) -> bool:
        with torch.no_grad():
            start = float(self._q(state))
        return state.ascent.maximise(lambda: self._q(state), start)

    def _outcome(self, state: EMState) -> tuple[Status, bool]:
        """Whether to stop, and whether the gains alone said so."""
        noise = resolution(state.cliques.spread, state.ascent.dtype)
        if self.tol == 0 or remaining_gain(state.gains, noise) >= self.tol:
            return Status.RUNNING, False
        if noise > self.tol:
            return Status.ROUNDING, True
        more = state.ascent.can_gain(lambda: self._objective(state), self.tol)
        return Status.RUNNING if more else Status.CONVERGED, True

    def _judge(
        self, problem: Problem, old: EMState, new: EMState, before: dict[str, Tensor], accepted: bool
    ) -> EMState:
        if not accepted:
            return replace(new, status=Status.STALLED) if new.ascent.rejections >= MAX_REJECTIONS else new
        if old.stochastic:
            return new  # another subsample: neither a fall nor a gain can be told from noise
        noise = rounding(old.objective, old.ascent.dtype)
        gain = new.objective - old.objective
        if gain != gain or new.objective == float("inf"):
            problem.space.restore(before)
            return replace(old, step=new.step, status=Status.NON_FINITE)
        if gain < -noise:
            return self._fallen(problem, old, new, before)
        new = replace(new, gains=(*old.gains, gain)[-WINDOW:])
        if new.step < new.next_check:
            return new
        status, seems_done = self._outcome(new)
        return replace(new, status=status, next_check=3 * new.step // 2 if seems_done else new.next_check)

    def _fallen(self, problem: Problem, old: EMState, new: EMState, before: dict[str, Tensor]) -> EMState:
        message = (
            f"EM's objective fell from {old.objective:.10g} to {new.objective:.10g} at iteration {new.step}. The model "
            "is probably not deterministic (dropout, random numbers outside pyro.sample), or float32 is too coarse "
            "here."
        )
        if self.on_decrease == "raise":
            raise DecreaseError(message)
        if self.on_decrease == "warn":
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            return replace(new, gains=())
        problem.space.restore(before)
        return replace(old, step=new.step, status=Status.DECREASED)


MAX_REJECTIONS = 10


def _coarsest(leaves: dict[str, Tensor]) -> torch.dtype:
    """The least exact dtype among the parameters, which limits what a change of the objective can mean."""
    return max((leaf.dtype for leaf in leaves.values()), key=lambda d: torch.finfo(d).eps, default=torch.float64)
