"""When EM is done: how much is left to gain, not how small the last gain was.

EM converges linearly, so gains shrink by a constant ratio a and the gain still to come is gain * a / (1 - a) (Aitken
extrapolation; Boehning et al. 1994, "The distribution of the likelihood ratio for mixtures of densities from the
one-parameter exponential family"). A rule on the last gain alone stops far from the optimum whenever a is near one.
"""

from __future__ import annotations

import itertools

import torch

__all__ = ["WINDOW", "remaining_gain", "resolution", "rounding"]

WINDOW = 3


def rounding(objective: float, dtype: torch.dtype) -> float:
    """Changes of the objective, in nats, that arithmetic in ``dtype`` cannot tell from zero."""
    return 32 * torch.finfo(dtype).eps * (1.0 + abs(objective))


def resolution(spread: float, dtype: torch.dtype) -> float:
    """Gains, in nats, below which the objective is noise: rounding errors of its terms, which add up at random.

    Args:
        spread: root of the sum of the squared terms of the log evidence, nats.
        dtype: what the terms were computed in; they are summed in float64.
    """
    return 4 * torch.finfo(dtype).eps * (1.0 + spread)


def remaining_gain(gains: tuple[float, ...], noise: float) -> float:
    """Estimated nats still to be gained.

    Args:
        gains: increases of the objective over the latest iterations, oldest first.
        noise: gains below this count as none.

    Returns:
        The Aitken estimate from the last two gains, with the larger of the last two ratios: an M-step that stops short
        of its maximum makes the ratios jump, and a small one by chance would end the run. Infinite while gains do not
        shrink, or are too few to tell; zero once there have been none for three iterations.
    """
    if len(gains) < WINDOW:
        return float("inf")
    if max(gains[-WINDOW:]) <= noise:
        return 0.0
    if min(gains[-WINDOW:-1]) <= noise:
        return float("inf")
    ratio = max(later / earlier for earlier, later in itertools.pairwise(gains[-WINDOW:]))
    return gains[-1] * ratio / (1.0 - ratio) if ratio < 1.0 else float("inf")
