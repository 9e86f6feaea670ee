"""Peak resident memory of a fit: a diagonal Gaussian mixture, 1e6 x 16 in float64 with 10 components.

A fresh process imports everything and fits a tiny data set, so that code and workspaces are in place; its resident
memory is then the zero. The peak of the whole process above it, after the data are made and fitted by three EM
iterations, is what is shown: the data count, libraries do not. The limit is 1.3 times the bytes of the data and 100 MB.
scikit-learn's peak for the same is there for the record. Linux only: the present resident memory is read from `/proc`.

Run by `make bench`, or `python tests/bench/bench_memory.py --threads 2`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch
from bench_mixtures import by_sklearn_diagonal, diagonal, simulate
from interleave import Array, Params, Run, by_fit, launch, options_parser, verdict

SIZE = (1_000_000, 16, 10)
TINY = 1000
STEPS = 3
MB = 1e6


def by_ours(x: Array, start: Params, steps: int) -> Run:
    return by_fit(diagonal(start), torch.from_numpy(x), start, steps)


SIDES = {"ours": by_ours, "scikit-learn": by_sklearn_diagonal}


def resident() -> float:
    """Resident memory now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MB


def peak() -> float:
    """The most that was resident so far, MB; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def measure(side: str, num: int) -> None:
    """Print the peak above the zero, and the zero, MB. To be run in a process of its own."""
    _, D, K = SIZE
    SIDES[side](*simulate(TINY, D, K), STEPS)
    zero = resident()
    SIDES[side](*simulate(num, D, K), STEPS)
    print(peak() - zero, zero)


def measured(side: str, num: int) -> tuple[float, float]:
    """`measure` in a fresh process, which inherits the pinned threads."""
    options = {"--threads": torch.get_num_threads(), "--side": side, "--num": num}
    words = [str(word) for option in options.items() for word in option]
    done = subprocess.run([sys.executable, sys.argv[0], *words], check=True, stdout=subprocess.PIPE, text=True)
    above, zero = map(float, done.stdout.splitlines()[-1].split())
    return above, zero


def bench(options: argparse.Namespace) -> bool:
    N, D, K = SIZE
    num = options.num or N // options.shrink
    if options.side:
        measure(options.side, num)
        return True
    data = num * D * 8 / MB
    limit = 1.3 * data + 100
    print(f"{'work':<34}{'data MB':>9}{'side':>14}{'zero MB':>9}{'peak MB':>9}{'limit':>8}{'':>8}{'peak / data':>13}")
    for side in SIDES:
        above, zero = measured(side, num)
        verdicts = verdict(above, limit) if side == "ours" else ""
        print(
            f"{f'diagonal float64 {num} x {D}, K={K}':<34}{data:>9.1f}{side:>14}{zero:>9.1f}{above:>9.1f}{limit:>8.1f}"
            f"{verdicts:>8}{above / data:>13.2f}",
            flush=True,
        )
    return True


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--side", choices=list(SIDES), default="", help="measure this side in this very process")
    parser.add_argument("--num", type=int, default=0, help="number of data (default 1e6, divided by --shrink)")
    launch(bench, parser)
