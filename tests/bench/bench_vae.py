"""Seconds per epoch of a variational autoencoder: `fit` against the Pyro loop it replaces.

The same model, guide, estimator (`Trace_ELBO`, one draw), optimiser (Adam), batches and start on both sides, taking
turns in one process. A round's seconds per epoch are the median of the epochs after the first, so set-up is apart; the
table shows medians over rounds, and of the rounds' ratios. Total seconds are those of the whole call: `fit` also
checks the model before its first step and evaluates the bound over all data after its last. The last column is the
ratio to the loop with Pyro's validation switched off, which `fit` does by itself after its first step.

Run by `make bench`, or `python tests/bench/bench_vae.py --threads 2`. Exits with an error where the two sides' ELBOs
over the last epoch differ by more than 1 %: they would not be doing the same work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from models import vae
from pyro_em import SVI, fit

BATCH_SIZES = (32, 128, 256)
TARGET = 0.8
TOLERANCE = 0.01
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Run:
    """One training run: when each epoch ended, its ELBO in nats over all data, and the time up to the first update."""

    epoch_ends: list[float]
    elbos: list[float]
    first_step: float
    wall: float

    @property
    def seconds_per_epoch(self) -> float:
        return statistics.median(end - start for start, end in pairwise(self.epoch_ends))


class Cut:
    """Batches of a tensor in a new random order each epoch: what `SVI(batch_size=)` does, for the loop."""

    def __init__(self, x: Tensor, batch_size: int) -> None:
        self.x, self.batch_size = x, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        return ((self.x[rows],) for rows in torch.randperm(len(self.x)).split(self.batch_size))


def loader_of(x: Tensor, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(x), batch_size=batch_size, shuffle=True)


def by_fit(x: Tensor, batch_size: int, epochs: int, seed: int, *, loader: bool) -> Run:
    """The package's fit; a batch's objective is scaled to all data, so its share of an epoch is b / N."""
    torch.manual_seed(seed)
    model, guide = vae.make()
    strategy = SVI(
        guide,
        optim=partial(torch.optim.Adam, lr=LEARNING_RATE),
        patience=None,
        max_epochs=epochs,
        batch_size=None if loader else batch_size,
    )
    data = loader_of(x, batch_size) if loader else x
    began = time.perf_counter()
    history = fit(model, data, strategy=strategy, progress=False).history
    wall = time.perf_counter() - began
    sizes = torch.tensor([len(rows) for rows in torch.arange(len(x)).split(batch_size)], dtype=torch.float64)
    objective = torch.tensor(history["objective"].to_numpy()).view(epochs, len(sizes))
    seconds = history["seconds"].to_numpy().reshape(epochs, len(sizes))
    elbos = (objective @ (sizes / len(x))).tolist()
    return Run(seconds[:, -1].tolist(), elbos, float(seconds[0, 0]), wall)


def by_loop(x: Tensor, batch_size: int, epochs: int, seed: int, *, loader: bool, validate: bool = True) -> Run:
    """The loop as Pyro's tutorials write it; a batch's loss counts its own data only, so an epoch is the plain sum."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    model, guide = vae.make()
    data = loader_of(x, batch_size) if loader else Cut(x, batch_size)
    ends, elbos, first_step = [], [], 0.0
    context: AbstractContextManager[None] = nullcontext() if validate else pyro.validation_enabled(False)
    with context:
        began = time.perf_counter()
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
        for _ in range(epochs):
            loss = 0.0
            for (batch,) in data:
                loss += svi.step(batch)
                first_step = first_step or time.perf_counter() - began
            elbos.append(-loss)
            ends.append(time.perf_counter() - began)
    return Run(ends, elbos, first_step, ends[-1])


def compare(x: Tensor, batch_size: int, epochs: int, rounds: int, *, loader: bool) -> dict[str, list[Run]]:
    """Runs by contender, one per round; each round shares a seed and starts with another contender."""
    contenders: dict[str, Callable[..., Run]] = {
        "fit": by_fit,
        "loop": by_loop,
        "unvalidated": partial(by_loop, validate=False),
    }
    for run in contenders.values():
        run(x, batch_size, 2, 0, loader=loader)
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for seed in range(rounds):
        order = list(contenders)
        turn = seed % len(order)
        for name in order[turn:] + order[:turn]:
            runs[name].append(contenders[name](x, batch_size, epochs, seed, loader=loader))
    return runs


def elbo_by_epoch(runs: list[Run]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*(run.elbos for run in runs), strict=True)]


def report(batch_size: int, runs: dict[str, list[Run]]) -> tuple[float, float]:
    """Print one row; return the ratio and the relative difference of the last epochs' ELBOs."""
    seconds = {name: statistics.median(r.seconds_per_epoch for r in rs) for name, rs in runs.items()}
    paired = [f.seconds_per_epoch / p.seconds_per_epoch for f, p in zip(runs["fit"], runs["loop"], strict=True)]
    ratio = statistics.median(paired)
    unvalidated = seconds["fit"] / seconds["unvalidated"]
    first = {name: statistics.median(r.first_step for r in runs[name]) for name in ("fit", "loop")}
    wall = {name: statistics.median(r.wall for r in runs[name]) for name in ("fit", "loop")}
    spread = f"{min(paired):.2f}-{max(paired):.2f}"
    print(
        f"{batch_size:>6}{seconds['fit']:>9.4f}{seconds['loop']:>9.4f}{ratio:>8.2f}{spread:>11}"
        f"{1e3 * first['fit']:>11.1f}{1e3 * first['loop']:>7.1f}{wall['fit']:>10.3f}{wall['loop']:>8.3f}"
        f"{wall['fit'] / wall['loop']:>8.2f}{unvalidated:>16.2f}"
    )
    ours, theirs = (elbo_by_epoch(runs[name])[-1] for name in ("fit", "loop"))
    return ratio, abs(ours - theirs) / abs(theirs)


def table(title: str, x: Tensor, epochs: int, rounds: int, *, loader: bool) -> bool:
    """Print the comparison at every batch size; return whether both sides' ELBOs agree."""
    print(f"\n{title}")
    print(
        f"{'batch':>6}{'seconds per epoch':>18}{'':>8}{'':>11}{'ms to 1st step':>18}{'total seconds':>18}{'':>8}"
        f"{'fit / loop':>16}\n{'':>6}{'fit':>9}{'loop':>9}{'ratio':>8}{'range':>11}{'fit':>11}{'loop':>7}"
        f"{'fit':>10}{'loop':>8}{'ratio':>8}{'not validated':>16}"
    )
    results, curves = [], []
    for batch_size in BATCH_SIZES:
        runs = compare(x, batch_size, epochs, rounds, loader=loader)
        results.append(report(batch_size, runs))
        curves.append((batch_size, elbo_by_epoch(runs["fit"]), elbo_by_epoch(runs["loop"])))
    shown = sorted({0, 1, epochs // 4, epochs // 2, epochs - 1})
    print("  ELBO per datum, nats, by epoch" + "".join(f"{epoch + 1:>9}" for epoch in shown))
    for batch_size, ours, theirs in curves:
        for name, curve in (("fit", ours), ("loop", theirs)):
            print(f"{batch_size:>12}  {name:<18}" + "".join(f"{curve[epoch] / len(x):>9.3f}" for epoch in shown))
    worst = max(difference for _, difference in results)
    agree = worst < TOLERANCE
    verdict = "the same work" if agree else "NOT THE SAME WORK"
    print(f"  ELBOs over the last epoch differ by at most {100 * worst:.2f} %: {verdict}")
    slowest = max(ratio for ratio, _ in results)
    print(f"  fit / loop at most {slowest:.2f}, target {TARGET}: {'met' if slowest <= TARGET else 'MISSED'}")
    return agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per row, after a warm-up (default 5)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs per run (default 20)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (x,) = vae.load()
    print(
        f"VAE on {len(x)} digits of {x.shape[1]} pixels, {options.threads} thread(s), torch {torch.__version__}, "
        f"pyro {pyro.__version__}; {options.rounds} rounds of {options.epochs} epochs"
    )
    titles = {True: "DataLoader on both sides", False: "A tensor cut by rows on both sides: SVI(batch_size=)"}
    agreed = [table(title, x, options.epochs, options.rounds, loader=loader) for loader, title in titles.items()]
    if not all(agreed):
        sys.exit(f"The ELBOs of fit and loop differ by more than {TOLERANCE:.0%}: their seconds do not compare.")


if __name__ == "__main__":
    main()
