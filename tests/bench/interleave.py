"""Two implementations of EM in turns: the rounds, the table and the pinned threads that the scripts here share.

A *side* makes a number of EM iterations from given parameters and says when each ended and what it reached. Both sides
get the same start; a round goes on from where the side's own last round ended, until `HORIZON` iterations are done, and
the next one starts anew. After every round the two sides' parameters are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from ratios import record
from threadpoolctl import threadpool_info

from pyro_em import EM, fit

HORIZON = 20
TOLERANCE = 1e-6

Array = np.ndarray
Params = dict[str, Array]
Model = Callable[..., Any]


@dataclass(frozen=True)
class Run:
    """EM iterations: when they began and when each ended, what they reached, and the seconds spent around them."""

    ticks: list[float]
    params: Params
    before: float = 0.0
    around: float = 0.0

    @property
    def seconds_per_iteration(self) -> float:
        return statistics.median(end - start for start, end in pairwise(self.ticks))


Side = Callable[[Params, int], Run]


@dataclass(frozen=True)
class Contest:
    """The same EM by two sides; `steps` iterations a round, and the most that ours may take of the other's time."""

    work: str
    peer: str
    ours: Side
    theirs: Side
    start: Params
    target: float
    steps: int = HORIZON
    exact: bool = True

    def __post_init__(self) -> None:
        if HORIZON % self.steps:
            raise ValueError(f"steps must divide {HORIZON}, where both sides start anew; got {self.steps}.")


@dataclass(frozen=True)
class Outcome:
    """All rounds of a contest, the first fit before them, and the largest difference after any round."""

    contest: Contest
    first: Run
    ours: list[Run]
    theirs: list[Run]
    difference: float

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE or not self.contest.exact


class Clock:
    """Mixed into an estimator of scikit-learn's kind: when its start was in place, and when each iteration ended."""

    ticks: list[float]

    def _initialize_parameters(self, *args: Any, **kwargs: Any) -> None:
        super()._initialize_parameters(*args, **kwargs)  # type: ignore[misc]
        self.ticks = [time.perf_counter()]

    def _m_step(self, *args: Any, **kwargs: Any) -> None:
        super()._m_step(*args, **kwargs)  # type: ignore[misc]
        self.ticks.append(time.perf_counter())


def by_fit(model: Model, x: torch.Tensor, params: Params, steps: int) -> Run:
    """The package's EM. `before` is up to the end of the first E-step, `around` all of the call but its iterations."""
    init = {name: torch.from_numpy(value) for name, value in params.items()}
    began = time.perf_counter()
    result = fit(model, x, strategy=EM(max_steps=steps, tol=0), init=init, progress=False)
    wall = time.perf_counter() - began
    if result.n_steps != steps:
        raise RuntimeError(f"fit made {result.n_steps} of {steps} iterations: {result.status}")
    ticks = result.history["seconds"].tolist()
    reached = {name: result.params[name].detach().numpy() for name in params}
    return Run(ticks, reached, before=ticks[0], around=wall - (ticks[-1] - ticks[0]))


def timed(step: Callable[[Params], Params], params: Params, steps: int) -> Run:
    """A hand-written iteration, `steps` times."""
    ticks = [time.perf_counter()]
    for _ in range(steps):
        params = step(params)
        ticks.append(time.perf_counter())
    return Run(ticks, params)


def difference(ours: Params, theirs: Params) -> float:
    """The largest absolute difference of any parameter, relative to the largest entry of that parameter."""
    return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs)


def compete(contest: Contest, rounds: int) -> Outcome:
    """Run both sides in turn, the order reversed in every other round, after one iteration each to warm up."""
    sides = {"ours": contest.ours, "theirs": contest.theirs}
    first = {name: side(contest.start, 1) for name, side in sides.items()}
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    worst = 0.0
    for turn in range(rounds):
        anew = turn * contest.steps % HORIZON == 0
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            at = contest.start if anew else runs[name][-1].params
            runs[name].append(sides[name](at, contest.steps))
        # np.maximum keeps a NaN, which max() may lose: it must not pass for agreement.
        worst = float(np.maximum(worst, difference(runs["ours"][-1].params, runs["theirs"][-1].params)))
    return Outcome(contest, first["ours"], runs["ours"], runs["theirs"], worst)


def print_header() -> None:
    print(
        f"{'':34}{'':>14}{'ms per iteration':>20}{'':>30}{'':>9}{'s of ours':>17}\n"
        f"{'work':<34}{'peer':<14}{'ours':>10}{'theirs':>10}{'ratio':>7}{'range':>14}{'target':>9}{'':>9}"
        f"{'first':>7}{'start':>7}{'around':>8}{'difference':>12}"
    )


def verdict(ratio: float, target: float) -> str:
    return "met" if ratio <= target else "MISSED"


def report(outcome: Outcome, options: argparse.Namespace) -> bool:
    """Print and record one row; return whether the sides' parameters agree, where they must."""
    contest = outcome.contest
    ours, theirs = ([run.seconds_per_iteration for run in runs] for runs in (outcome.ours, outcome.theirs))
    paired = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(paired)
    before = statistics.median(run.before for run in outcome.ours)
    around = statistics.median(run.around for run in outcome.ours)
    note = "" if outcome.agrees else "  NOT THE SAME"
    print(
        f"{contest.work:<34}{contest.peer:<14}{1e3 * statistics.median(ours):>10.3f}"
        f"{1e3 * statistics.median(theirs):>10.3f}{ratio:>7.2f}{f'{min(paired):.2f}-{max(paired):.2f}':>14}"
        f"{contest.target:>9.2f}{verdict(ratio, contest.target):>9}"
        f"{outcome.first.before:>7.2f}{before:>7.2f}{around:>8.2f}{outcome.difference:>12.1e}{note}",
        flush=True,
    )
    row = {"ratio": ratio, "low": min(paired), "high": max(paired), "below": "", "target": contest.target}
    record(options.record, work=contest.work, peer=contest.peer, threads=options.threads[0], **row)
    return outcome.agrees


def options_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts in turn (default 1 2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per row, after a warm-up (default 5)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the number of data by this (default 1)")
    parser.add_argument("--only", default="", help="rows whose work contains this text")
    parser.add_argument("--record", default="", help="a file of JSON lines to append rows to")
    return parser


def pinned(threads: int) -> dict[str, str]:
    """What makes OpenMP, the BLAS libraries, numba and XLA use so many threads; they read it when they are imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")
    return dict.fromkeys(names, str(threads))


def launch(bench: Callable[[argparse.Namespace], bool], parser: argparse.ArgumentParser) -> None:
    """Run `bench` in a process for each number of threads; exit with an error if it returns False in one."""
    options = parser.parse_args()
    environment = pinned(options.threads[0])
    if len(options.threads) == 1 and environment.items() <= os.environ.items():
        torch.set_num_threads(options.threads[0])
        blas = max((pool["num_threads"] for pool in threadpool_info()), default=1)
        print(
            f"\n{options.threads[0]} thread(s): torch {torch.__version__} on {torch.get_num_threads()}, BLAS on {blas}"
        )
        if not bench(options):
            sys.exit(f"Parameters differ by more than {TOLERANCE}, relative: the seconds do not compare.")
        return
    codes = [
        subprocess.run(
            [sys.executable, *sys.argv, "--threads", str(threads)], env={**os.environ, **pinned(threads)}, check=False
        ).returncode
        for threads in options.threads
    ]
    sys.exit(max(map(abs, codes)))


def run_contests(contests: Iterable[tuple[str, Callable[[], Contest]]], options: argparse.Namespace) -> bool:
    """The table of all contests whose name was asked for; a contest's data are made when its turn comes."""
    print_header()
    return all([report(compete(make(), options.rounds), options) for name, make in contests if options.only in name])
