"""Rows shared out among threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

__all__ = ["spread"]

LEAST_WORK = 2_000_000  # multiplications below which a second thread costs more than it saves
Found = TypeVar("Found")


def spread(rows: int, work: int, task: Callable[[int, int], Found], least: int = LEAST_WORK) -> list[Found]:
    """What the task returns over ranges of rows, in order: one for each of torch's threads that is worth starting.

    In plain threads, as the kernels hold no lock of the interpreter: numba's own threads would share the process with
    torch's OpenMP, and GNU OpenMP does not survive a fork.

    Args:
        work: multiplications over all rows.
        least: what a further thread must have of them.
    """
    count = max(1, min(rows, torch.get_num_threads(), 1 + work // least))
    if count == 1:
        return [task(0, rows)]
    cuts = list(pairwise(rows * k // count for k in range(count + 1)))
    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(task, *cut) for cut in cuts[1:]]
        own = task(*cuts[0])  # a thread that only waits may keep the others from its processor's neighbour
        return [own, *(other.result() for other in others)]
