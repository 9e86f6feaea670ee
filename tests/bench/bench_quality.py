"""Seconds to within 0.001 nats per datum of the optimum: EM against Pyro's enumerated SVI, from the same start.

The start knows no truth: equal weights, means at random data with the spread of all data, or random probabilities. The
optimum is the log evidence at which a long EM run from there ends. EM is `fit(strategy=EM())`, from the call to the
end of the iteration that arrives, so its checks and its first E-step ("start") count. SVI is the loop that Pyro's
tutorials write, `TraceEnum_ELBO` and Adam over all data, with validation off; its loss is minus the exact log evidence
at the parameters before a step, so nothing more is evaluated, and the time counted is that of the step that led there.
It has three learning rates, a budget of seconds for each, and the best of them counts. Where none arrives, the ratio is
an upper limit, EM's seconds over the budget. Either may climb to another local optimum: the last two columns are the
best that SVI saw and where both began, in nats per datum above the optimum.

Run by `make bench`, or `python tests/bench/bench_quality.py --threads 2 --budget 20`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from bench_counts import ITEMS, latent_class, simulate_items
from bench_mixtures import diagonal, simulate
from interleave import Model, launch, options_parser, verdict
from pyro.infer import TraceEnum_ELBO, config_enumerate
from ratios import record
from torch import Tensor

from pyro_em import EM, fit

CLOSE = 1e-3  # nats per datum
TARGET = 0.05
LEARNING_RATES = (0.1, 0.03, 0.01)
LONG = 2000  # iterations
MIXTURE = (10_000, 2, 3)  # data, features, components


@dataclass(frozen=True)
class Task:
    """A model that starts by itself at the same parameters for every fit, and its data."""

    name: str
    model: Model
    x: Tensor


@dataclass(frozen=True)
class Climb:
    """A run: the seconds until it was close (infinite if never), the best log evidence it saw, the seconds to begin."""

    seconds: float
    best: float
    before: float = 0.0


def by_em(task: Task, close: float) -> Climb:
    """The package's EM, stopped by a callback when it is there."""
    result = fit(
        task.model,
        task.x,
        strategy=EM(max_steps=LONG),
        callbacks=[lambda info: info.objective >= close],
        progress=False,
    )
    best, seconds = result.history["objective"].max(), result.history["seconds"]
    return Climb(seconds.iloc[-1] if best >= close else math.inf, best, seconds.iloc[0])


def by_svi(task: Task, close: float, learning_rate: float, budget: float) -> Climb:
    """Pyro's loop, until it is there or has used up its budget."""
    pyro.clear_param_store()
    model, best, ended = config_enumerate(task.model), -math.inf, 0.0
    with pyro.validation_enabled(False):
        began = time.perf_counter()
        optim = pyro.optim.Adam({"lr": learning_rate})
        svi = pyro.infer.SVI(model, lambda x: None, optim, TraceEnum_ELBO(max_plate_nesting=1))
        while ended < budget:
            best = max(best, -svi.step(task.x))
            if best >= close:
                return Climb(ended, best)
            ended = time.perf_counter() - began
    return Climb(math.inf, best)


def search(task: Task, close: float, budget: float) -> tuple[float, Climb, float]:
    """The best learning rate, its run, and the best log evidence of all; none gets more time than the best so far."""
    rate, fastest, best = LEARNING_RATES[0], Climb(math.inf, -math.inf), -math.inf
    for learning_rate in LEARNING_RATES:
        climb = by_svi(task, close, learning_rate, min(budget, fastest.seconds))
        best = max(best, climb.best)
        if (-climb.seconds, climb.best) > (-fastest.seconds, fastest.best):
            rate, fastest = learning_rate, climb
    return rate, fastest, best


def report(task: Task, options: argparse.Namespace) -> None:
    """Print and record a row: rounds of EM and, where it arrives at all, of SVI at its best learning rate, in turns."""
    rounds, budget = options.rounds, options.budget
    long = fit(task.model, task.x, strategy=EM(max_steps=LONG), progress=False)
    start, optimum = long.history["objective"].iloc[0], long.objective
    close = optimum - CLOSE * len(task.x)
    rate, found, best = search(task, close, budget)
    arrives = math.isfinite(found.seconds)
    ems, svis = [], []
    for _ in range(rounds):
        ems.append(by_em(task, close))
        svis.append(by_svi(task, close, rate, math.inf).seconds if arrives else budget)
    em = [climb.seconds for climb in ems]
    ratio = statistics.median(mine / other for mine, other in zip(em, svis, strict=True))
    below, theirs = ("", f"{statistics.median(svis):.3f}") if arrives else ("< ", f"> {budget:g}")
    print(
        f"{task.name:<34}{long.n_steps:>8}{statistics.median(em):>9.3f}{f'{min(em):.3f}-{max(em):.3f}':>16}"
        f"{statistics.median(climb.before for climb in ems):>8.3f}{theirs:>9}{rate:>7}{f'{below}{ratio:.4f}':>10}"
        f"{TARGET:>8}{verdict(ratio, TARGET):>8}{(best - optimum) / len(task.x):>11.5f}"
        f"{(start - optimum) / len(task.x):>9.3f}",
        flush=True,
    )
    row = {"ratio": ratio, "below": below, "target": TARGET, "threads": options.threads[0]}
    record(options.record, work=f"{task.name}, to 1e-3 nats per datum", peer="Pyro's SVI", **row)


def mixture_task(shrink: int) -> Task:
    N, D, K = MIXTURE
    x, _ = simulate(N // shrink, D, K)
    locs = x[np.random.default_rng(0).choice(len(x), K, replace=False)]
    start = {"weights": np.full(K, 1 / K), "locs": locs, "scales": np.tile(x.std(0), (K, 1))}
    return Task(f"diagonal {len(x)} x {D}, K={K}", diagonal(start), torch.from_numpy(x))


def items_task(shrink: int) -> Task:
    people, items, K = ITEMS
    x, _ = simulate_items(people // shrink, items, K)
    start = {"weights": np.full(K, 1 / K), "probs": np.random.default_rng(0).uniform(0.25, 0.75, (K, items))}
    return Task(f"latent class {len(x)} x {items}, K={K}", latent_class(start), torch.from_numpy(x))


TASKS: dict[str, Callable[[int], Task]] = {"diagonal": mixture_task, "latent class": items_task}


def bench(options: argparse.Namespace) -> bool:
    print(
        f"{'':34}{'long EM':>8}{'seconds to be close':>42}{'':>7}{'':>10}{'':>16}{'nats per datum':>20}\n"
        f"{'work':<34}{'steps':>8}{'EM':>9}{'range':>16}{'start':>8}{'SVI':>9}{'rate':>7}{'ratio':>10}"
        f"{'target':>8}{'':>8}{'best SVI':>11}{'start':>9}"
    )
    for name, make in TASKS.items():
        if options.only in name:
            report(make(options.shrink), options)
    return True


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each learning rate (default 20)")
    launch(bench, parser)
