"""Several starts of one fit: the best of them, run to its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_em.data import hinting
from pyro_em.errors import DegenerateError, StartError
from pyro_em.problem import Problem
from pyro_em.status import Status
from pyro_em.strategy import StepInfo, Strategy

__all__ = ["Record", "Run", "run_all"]

ATTEMPTS = 20  # starts that may collapse before on_degenerate="restart" gives up


@dataclass
class Record:
    """What a run tells while it lasts.

    Attributes:
        restart: the start it belongs to.
        before: steps of an earlier run from the same start, which it goes on from.
        rows: its part of the history.
        asked: whether a callback asked the fit to stop.
    """

    restart: int
    before: int = 0
    rows: list[StepInfo] = field(default_factory=list)
    asked: bool = False

    @property
    def steps(self) -> int:
        """Steps of the start so far."""
        return self.rows[-1].step if self.rows else self.before

    def add(self, info: StepInfo, seconds: float) -> StepInfo:
        """Write a step down, numbered as the history numbers it."""
        row = replace(info, step=info.step + self.before, seconds=seconds, restart=self.restart)
        self.rows.append(row)
        return row


Loop = Callable[[Problem, Any, int | None, Record], Any]


@dataclass
class Run:
    """A run: its rows of the history, the state it ended in, and how many steps led there."""

    rows: list[StepInfo]
    state: Any
    n_steps: int


@dataclass
class _Ended:
    """Where a run ended."""

    objective: float
    restart: int
    steps: int
    state: Any
    point: dict[str, Tensor]


def run_all(problem: Problem, strategy: Strategy, loop: Loop) -> Run:
    """Run a strategy from as many starts as it asks for.

    Args:
        problem: the first start.
        strategy: may have ``restarts``, ``on_degenerate``, and ``short_run``: the steps of a restart before the best of
            them goes on to its end; without it, each runs to its own end.
        loop: from a problem, its initial state and a cap on steps to the final state; it fills the record. Where a
            callback asks it to stop, there are no further runs, and the best so far is kept.

    Raises:
        DegenerateError: every start collapsed.
    """
    restarts = getattr(strategy, "restarts", 1)
    if restarts > 1:
        return _best_of(problem, strategy, loop, restarts)
    again = ATTEMPTS if getattr(strategy, "on_degenerate", "raise") == "restart" else 1
    rows: list[StepInfo] = []
    for attempt in range(again):
        try:
            state, record = _once(problem, strategy, loop, attempt, None, rows)
            return Run(rows, state, record.steps)
        except DegenerateError:
            if attempt == again - 1:
                raise
    raise AssertionError("unreachable")


def _once(
    problem: Problem, strategy: Strategy, loop: Loop, attempt: int, cap: int | None, rows: list[StepInfo]
) -> tuple[Any, Record]:
    """One start, on a random stream of its own after the first; its rows stay when it collapses."""
    if attempt:
        problem.space.forget()
        pyro.set_rng_seed(int(torch.randint(2**31 - 1, ())))
    problem = replace(problem, attempt=attempt)
    record = Record(attempt)
    try:
        with hinting(problem.args, problem.kwargs):
            state = strategy.init(problem)
        return loop(problem, state, cap, record), record
    finally:
        rows += record.rows


def _best_of(problem: Problem, strategy: Strategy, loop: Loop, restarts: int) -> Run:
    short = getattr(strategy, "short_run", None)
    rows: list[StepInfo] = []
    ended: list[_Ended] = []
    last_error: DegenerateError | StartError | None = None
    asked = False
    for attempt in range(restarts):
        try:
            state, record = _once(problem, strategy, loop, attempt, short, rows)
            asked = record.asked
            _rank(problem, strategy, state, record, ended, short is None)
        except (DegenerateError, StartError) as error:
            if attempt == 0 and isinstance(error, StartError):
                raise  # these are the user's own values
            last_error = error
        if asked:
            break
    if short is None and ended:
        cut_short = asked and (attempt + 1 < restarts or state.status is Status.STOPPED)
        problem.space.recall()
        return Run(rows, _stopped(ended[0].state) if cut_short else ended[0].state, ended[0].steps)
    for run in ended:
        try:
            return _halted(problem, strategy, rows, run) if asked else _continued(problem, strategy, loop, rows, run)
        except DegenerateError as error:
            last_error = error
    assert last_error is not None
    raise last_error


def _rank(
    problem: Problem, strategy: Strategy, state: Any, record: Record, ended: list[_Ended], only_best: bool
) -> None:
    """Put a run that has just ended among the others, the best first."""
    if only_best and ended and state.objective is not None and state.objective <= ended[0].objective:
        return
    objective = strategy.evaluate(problem, state).objective
    run = _Ended(objective, record.restart, record.steps, state, problem.space.snapshot())
    ended.append(run)
    ended.sort(key=lambda run: -math.inf if math.isnan(run.objective) else run.objective, reverse=True)
    if ended[0] is run:
        problem.space.save()
    if only_best:
        del ended[1:]


def _stopped(state: Any) -> Any:
    return replace(state, status=Status.STOPPED)


def _resumed(problem: Problem, short: _Ended) -> Problem:
    """The problem with a short run's end for its start."""
    return replace(problem, start=lambda: problem.space.restore(short.point), attempt=None)


def _continued(problem: Problem, strategy: Strategy, loop: Loop, rows: list[StepInfo], short: _Ended) -> Run:
    """A short run, to its end; its rows stay when it collapses."""
    problem = _resumed(problem, short)
    record = Record(short.restart, short.steps)
    try:
        state = loop(problem, strategy.init(problem), None, record)
    finally:
        rows += [row for row in record.rows if row.step > short.steps]
    return Run(rows, state, record.steps)


def _halted(problem: Problem, strategy: Strategy, rows: list[StepInfo], short: _Ended) -> Run:
    """A short run as it is, where a callback asked the fit to stop."""
    state = strategy.init(_resumed(problem, short))
    return Run(rows, _stopped(state), short.steps)
