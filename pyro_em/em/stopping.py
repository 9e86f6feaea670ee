"""When EM is done: how much is left to gain, not how small the last gain was.

EM converges linearly, so gains shrink by a constant ratio a and the gain still to come is gain * a / (1 - a) (Aitken
extrapolation; Boehning et al. 1994, "The distribution of the likelihood ratio for mixtures", eq. 10). A rule on the last
gain alone stops far from the optimum whenever a is near one.
"""

from __future__ import annotations

import torch

__all__ = ["remaining_gain", "rounding"]


def rounding(objective: float, dtype: torch.dtype) -> float:
    """Changes of the objective, in nats, that arithmetic in ``dtype`` cannot tell from zero."""
    return 32 * torch.finfo(dtype).eps * (1.0 + abs(objective))


def remaining_gain(gains: tuple[float, ...], noise: float) -> float:
    """Estimated nats still to be gained.

    Args:
        gains: increases of the objective over the latest iterations, oldest first.
        noise: gains below this count as none.

    Returns:
        The Aitken estimate from the last two gains; infinite while they do not shrink, or are too few to tell.
    """
    if gains and gains[-1] <= noise:
        return 0.0
    if len(gains) < 2 or gains[-2] <= 0.0:
        return float("inf")
    ratio = gains[-1] / gains[-2]
    return gains[-1] * ratio / (1.0 - ratio) if ratio < 1.0 else float("inf")
