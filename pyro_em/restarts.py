"""Several starts of one fit: the best of them, run to its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_em.errors import DegenerateError, StartError
from pyro_em.problem import Problem
from pyro_em.strategy import StepInfo, Strategy

__all__ = ["Run", "run_all"]

ATTEMPTS = 20  # starts that may collapse before on_degenerate="restart" gives up

Loop = Callable[[Problem, Any, int | None, list[StepInfo]], Any]


@dataclass
class Run:
    """A run: its rows of the history, the state it ended in, and how many steps led there."""

    rows: list[StepInfo]
    state: Any
    n_steps: int


@dataclass
class _Best:
    """The best run so far."""

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
        loop: from a problem, its initial state and a cap on steps to the final state; it writes the history's rows.

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
            state = _once(problem, strategy, loop, attempt, None, rows)
            return Run(rows, state, rows[-1].step if rows else 0)
        except DegenerateError:
            if attempt == again - 1:
                raise
    raise AssertionError("unreachable")


def _once(problem: Problem, strategy: Strategy, loop: Loop, attempt: int, cap: int | None, rows: list[StepInfo]) -> Any:
    """One start, on a random stream of its own after the first; its rows stay when it collapses."""
    if attempt:
        problem.space.forget()
        pyro.set_rng_seed(int(torch.randint(2**31 - 1, ())))
    problem = replace(problem, attempt=attempt)
    own: list[StepInfo] = []
    try:
        return loop(problem, strategy.init(problem), cap, own)
    finally:
        rows += [replace(row, restart=attempt) for row in own]


def _best_of(problem: Problem, strategy: Strategy, loop: Loop, restarts: int) -> Run:
    short = getattr(strategy, "short_run", None)
    rows: list[StepInfo] = []
    best: _Best | None = None
    last_error: DegenerateError | StartError | None = None
    for attempt in range(restarts):
        try:
            state = _once(problem, strategy, loop, attempt, short, rows)
            if best is not None and state.objective is not None and state.objective <= best.objective:
                continue
            objective = strategy.evaluate(problem, state).objective
        except (DegenerateError, StartError) as error:
            if attempt == 0 and isinstance(error, StartError):
                raise  # these are the user's own values
            last_error = error
            continue
        if best is None or math.isnan(best.objective) or objective > best.objective:
            steps = rows[-1].step if rows else 0
            best = _Best(objective, attempt, steps, state, problem.space.snapshot())
            problem.space.save()
    if best is None:
        assert last_error is not None
        raise last_error
    if short is not None:
        return _continued(problem, strategy, loop, rows, best)
    problem.space.recall()
    return Run(rows, best.state, best.steps)


def _continued(problem: Problem, strategy: Strategy, loop: Loop, rows: list[StepInfo], best: _Best) -> Run:
    """The best short run, to its end."""
    problem = replace(problem, start=lambda: problem.space.restore(best.point), attempt=None)
    more: list[StepInfo] = []
    state = loop(problem, strategy.init(problem), None, more)
    tail = [replace(row, step=row.step + best.steps, restart=best.restart) for row in more if row.step]
    rows = rows + tail
    return Run(rows, state, rows[-1].step if rows else 0)
