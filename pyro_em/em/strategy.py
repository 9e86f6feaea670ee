"""EM: coordinate ascent on L(theta, q), with q the exact posterior.

E-step: q = p(z | x; theta), so that L = log p(x; theta). M-step: raise Q(theta) = E_q[log p(x, z; theta)]. Since
log p(x; theta') - log p(x; theta) >= Q(theta') - Q(theta), any M-step that does not lower Q does not lower the
objective (Dempster, Laird & Rubin 1977, theorem 1), and one that does is undone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pyro

from pyro_em.checked import check_count, check_nats
from pyro_em.em.engine import Engine, Options
from pyro_em.em.inference import ExactInference
from pyro_em.em.m_step import GradientMStep
from pyro_em.em.no_start import no_start
from pyro_em.em.opening import open_model
from pyro_em.em.squarem import squarem
from pyro_em.em.starts import RandomResponsibilities, Start
from pyro_em.em.stopping import WINDOW, remaining_gain, rounding
from pyro_em.errors import DecreaseError
from pyro_em.garbage import no_collection
from pyro_em.problem import Problem
from pyro_em.status import Status
from pyro_em.strategy import Evaluation, ObjectiveKind, StepInfo

__all__ = ["EM", "EMState"]

UNBOUNDED = 1e28  # nats: densities of zero or infinity are kept finite, at ten to the thirty times some number


@dataclass(frozen=True)
class EMState:
    """What the next iteration needs: the posterior at the present parameters, and the recent gains.

    Attributes:
        expectation: the E-step at the parameters in place.
        engine: evaluates and moves them.
        itself: makes the engine that runs the program, and what it answers for, should tensors and program part ways.
        is_short: whether only the best of several such runs goes on from its end: until then neither a trial climb nor
            a comparison with the program is worth its time.
        stochastic: whether the objective is that of a subsample, drawn anew each time.
    """

    step: int
    status: Status
    expectation: Any
    engine: Engine
    inference: ExactInference
    stochastic: bool
    itself: Callable[[], tuple[Engine, ExactInference]]
    is_short: bool = False
    gains: tuple[float, ...] = ()
    next_check: int = 0

    @property
    def objective(self) -> float:
        """The objective at the parameters in place, total nats."""
        return float(self.expectation.objective)


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
        m_step: ``None`` solves for each parameter exactly where that is possible, and by L-BFGS on Q elsewhere
            (``result.explain()`` says which); a :class:`GradientMStep` is used for all.
        priors: whether the densities of point-estimated latents count (MAP); ``False`` gives maximum likelihood.
        fixed: names of parameters that stay as they start, to the bit.
        restarts: number of starts. Each makes at most 20 iterations on its own random stream, and the best goes on to
            convergence (Biernacki, Celeux & Govaert 2003); all are kept in ``history``. One that collapses is out.
        start: where to start: ``None`` is the model's own initial values, and :class:`RandomResponsibilities` for
            every restart after the first; :class:`RandomDraws` and :class:`KMeans` are others.
        accelerate: ``"squarem"`` extrapolates along pairs of iterations (Varadhan & Roland 2008) and takes the plain
            step where that would lower the objective; ``None``, plain EM.
        batch_size: rows of data in memory at a time; they are cut from tensors (or a ``numpy.memmap``) along the first
            dimension, and one iteration is one pass over all of them: the result is that of full data. A ``DataLoader``
            among the arguments does the same. Initial values that the model computes from data are those of the first
            batch.
        on_degenerate: what to do about a component that collapses (its spread goes to nothing about a few equal data,
            or its concentrations grow without limit): ``"raise"`` a :class:`~pyro_em.errors.DegenerateError`, hold its
            spread at a ``"floor"`` (a millionth of the data's variance; concentrations at a million), ``"drop"`` its
            state, or ``"restart"`` elsewhere. What only the gradient can move is neither held nor dropped, but raises.
        on_decrease: what to do when the objective falls by more than rounding: ``"raise"``, ``"warn"`` and go on, or
            ``"revert"`` to the parameters before and stop.

    Raises:
        ValueError: a hyperparameter out of range.
        TypeError: a hyperparameter of another type.

    Source: Dempster, Laird & Rubin (1977), "Maximum likelihood from incomplete data via the EM algorithm".
    """

    max_steps: int = 1000
    tol: float = 1e-3
    m_step: GradientMStep | None = None
    priors: bool = True
    fixed: tuple[str, ...] = ()
    restarts: int = 1
    start: Start | None = None
    accelerate: Literal["squarem"] | None = None
    batch_size: int | None = None
    on_decrease: Literal["raise", "warn", "revert"] = "raise"
    on_degenerate: Literal["raise", "floor", "drop", "restart"] = "raise"

    takes_weights: ClassVar[bool] = True
    short_run: ClassVar[int] = 20  # iterations of a restart, before the best goes on

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps, 0)
        check_nats("tol", self.tol)
        check_count("batch_size", self.batch_size, optional=True)
        check_count("restarts", self.restarts)
        if self.start is not None and (isinstance(self.start, type) or not hasattr(self.start, "place")):
            raise TypeError(f"start must be a start object, such as KMeans('x'), or None; got {self.start!r}.")
        if self.on_degenerate not in ("raise", "floor", "drop", "restart"):
            raise ValueError(
                f"on_degenerate must be 'raise', 'floor', 'drop' or 'restart'; got {self.on_degenerate!r}."
            )
        if self.accelerate not in (None, "squarem"):
            raise ValueError(f"accelerate must be 'squarem' or None; got {self.accelerate!r}.")
        if self.on_decrease not in ("raise", "warn", "revert"):
            raise ValueError(f"on_decrease must be 'raise', 'warn' or 'revert'; got {self.on_decrease!r}.")
        if self.m_step is not None and not isinstance(self.m_step, GradientMStep):
            raise TypeError(f"m_step must be a GradientMStep or None; got {type(self.m_step).__name__}.")
        object.__setattr__(self, "fixed", (self.fixed,) if isinstance(self.fixed, str) else tuple(self.fixed))

    @no_collection()
    def init(self, problem: Problem) -> EMState:
        """Check the model, put the start in place and make the first E-step."""
        options = Options(self.m_step, self.fixed, self.priors, self.on_degenerate)
        opened = open_model(problem, options, self.batch_size)
        engine = opened.engine
        if problem.attempt is not None:
            self._place(engine, problem.attempt)
        state = EMState(
            step=0,
            status=Status.RUNNING,
            expectation=engine.expect(),
            engine=engine,
            inference=opened.inference,
            stochastic=opened.prepared.stochastic,
            itself=opened.itself,
            is_short=self.restarts > 1 and problem.attempt is not None,
        )
        if not abs(state.objective) < UNBOUNDED:
            raise no_start(state.objective, problem)
        return state if engine.has_free else replace(state, status=Status.CONVERGED)

    def step(self, problem: Problem, state: EMState) -> tuple[EMState, StepInfo]:
        """One iteration: M-step with the posterior at hand, then E-step at the new parameters.

        With acceleration, one cycle of three; ``step`` counts E-steps.
        """
        before = state.engine.point()
        # the first run of the program was validated
        with pyro.validation_enabled(False) if state.engine.runs_program else nullcontext():
            leaps = self.accelerate is not None and not state.stochastic
            new = self._accelerated(state) if leaps else self._plain(state)
            new.engine.refuse(new.expectation)
            new = replace(new, gains=()) if state.engine.breaks else self._judge(state, new, before)
        return new, StepInfo(new.step, new.objective)

    def _place(self, engine: Engine, attempt: int) -> None:
        start = self.start or (RandomResponsibilities() if attempt else None)
        if start is not None:
            start.place(engine)

    @no_collection()
    def evaluate(self, problem: Problem, state: EMState) -> Evaluation:
        """The objective of the parameters in place; under subsampled plates, of the last subsample."""
        moved = state.engine.finish()
        engine = state.engine if state.engine.agrees() else state.itself()[0]
        found = state.expectation if engine is state.engine and not moved else engine.expect()
        kind: ObjectiveKind = "log_joint" if state.engine.counts_priors else "log_evidence"
        return Evaluation(found.objective, kind, found.log_evidence)

    def _plain(self, state: EMState) -> EMState:
        accepted = state.engine.maximise(state.expectation)
        if not accepted and not state.stochastic:
            stalled = Status.STALLED if state.engine.is_stuck else state.status
            return replace(state, step=state.step + 1, status=stalled)
        return replace(state, step=state.step + 1, expectation=state.engine.expect())

    def _accelerated(self, state: EMState) -> EMState:
        expectation, steps = squarem(state.engine, state.expectation)
        return replace(state, step=state.step + steps, expectation=expectation)

    def _outcome(self, state: EMState) -> tuple[Status, bool]:
        """Whether to stop, and whether the gains alone said so."""
        if self.tol == 0:
            return Status.RUNNING, False
        noise = state.engine.noise(state.expectation)
        if remaining_gain(state.gains, noise) >= self.tol:
            return Status.RUNNING, False
        if state.is_short:
            return Status.CONVERGED, True  # a trial climb would take longer than all iterations of a short run
        if noise > self.tol:
            return Status.ROUNDING, True
        if state.engine.can_gain(self.tol, keep=self._may_leap(state)):
            return Status.RUNNING, True
        return Status.NON_FINITE if _is_undefined(state.engine) else Status.CONVERGED, True

    def _may_leap(self, state: EMState) -> bool:
        """Whether a trial climb may be the step that EM's own cannot make, as at a kink of Q where the objective has
        none: they gain nothing.
        """
        is_still = max(state.gains, default=math.inf) <= state.engine.noise(state.expectation)
        return is_still and self.m_step is None

    def _judge(self, old: EMState, new: EMState, before: Any) -> EMState:
        if new.status is Status.STALLED or new.expectation is old.expectation or old.stochastic:
            return new  # under a new subsample, neither a fall nor a gain can be told from noise
        noise = rounding(old.objective, old.engine.dtype)
        gain = new.objective - old.objective
        if gain != gain or new.objective >= UNBOUNDED:
            old.engine.move(before)
            return replace(old, step=new.step, status=Status.NON_FINITE)
        if gain < -noise and gain < -noise - old.engine.slack(old.expectation):
            return self._fallen(old, new, before)
        new = replace(new, gains=(*old.gains, gain)[-WINDOW:])
        if new.step < new.next_check:
            return new
        here = new.engine.point()
        status, seems_done = self._outcome(new)
        if status is not Status.RUNNING and not new.is_short and not new.engine.agrees():
            return self._by_program(new)
        if seems_done and status is Status.RUNNING and self._may_leap(new):
            return self._leapt(new, here)
        return replace(new, status=status, next_check=3 * new.step // 2) if seems_done else new

    def _leapt(self, state: EMState, before: Any) -> EMState:
        """Go on from where a trial climb has ended."""
        found = state.engine.expect()
        state.engine.refuse(found)
        if not found.objective < UNBOUNDED:
            state.engine.move(before)
            return replace(state, status=Status.NON_FINITE)
        return replace(state, expectation=found, gains=())

    def _by_program(self, state: EMState) -> EMState:
        """Go on from here by runs of the program: its tensors are not what it says here."""
        engine, inference = state.itself()
        found = engine.expect()
        return replace(state, engine=engine, inference=inference, expectation=found, gains=(), status=Status.RUNNING)

    def _fallen(self, old: EMState, new: EMState, before: Any) -> EMState:
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
        old.engine.move(before)
        return replace(old, step=new.step, status=Status.DECREASED)


def _is_undefined(engine: Engine) -> bool:
    if engine.undefined:
        names = ", ".join(map(repr, engine.undefined))
        warnings.warn(
            f"The gradient of EM's objective in {names} is infinite or NaN, so that the fit could not move them. Look "
            "for zero times infinity in the model, and take its branches apart by torch.where, before a function that "
            "has no derivative at the edge, not behind it.",
            RuntimeWarning,
            stacklevel=2,
        )
    return bool(engine.undefined)
