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
    ended: list[_Ended] = []
    last_error: DegenerateError | StartError | None = None
    for attempt in range(restarts):
        try:
            state = _once(problem, strategy, loop, attempt, short, rows)
            if short is None and ended and state.objective is not None and state.objective <= ended[0].objective:
                continue
            objective = strategy.evaluate(problem, state).objective
        except (DegenerateError, StartError) as error:
            if attempt == 0 and isinstance(error, StartError):
                raise  # these are the user's own values
            last_error = error
            continue
        steps = rows[-1].step if rows else 0
        ended.append(_Ended(objective, attempt, steps, state, problem.space.snapshot()))
        ended.sort(key=lambda run: -math.inf if math.isnan(run.objective) else run.objective, reverse=True)
        if ended[0].restart == attempt:
            problem.space.save()
        if short is None:
            del ended[1:]
    if short is not None:
        for run in ended:
            try:
                return _continued(problem, strategy, loop, rows, run)
            except DegenerateError as error:
                last_error = error
    elif ended:
        problem.space.recall()
        return Run(rows, ended[0].state, ended[0].steps)
    assert last_error is not None
    raise last_error


def _continued(problem: Problem, strategy: Strategy, loop: Loop, rows: list[StepInfo], short: _Ended) -> Run:
    """A short run, to its end; its rows stay when it collapses."""
    problem = replace(problem, start=lambda: problem.space.restore(short.point), attempt=None)
    more: list[StepInfo] = []
    try:
        state = loop(problem, strategy.init(problem), None, more)
    finally:
        rows += [replace(row, step=row.step + short.steps, restart=short.restart) for row in more if row.step]
    return Run(rows, state, rows[-1].step if rows else 0)
