"""What to say where a fit cannot start."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_em.errors import StartError
from pyro_em.problem import Problem

__all__ = ["no_start"]


def no_start(objective: float, problem: Problem) -> StartError:
    """What to say of a start whose objective is no number."""
    if objective > 0:
        return StartError(
            "The objective at the start is inf: a density is unbounded there (that of a prior with a concentration "
            "below 1, at the edge of its support, or that of a datum of exactly zero under a Gamma, of zero or one "
            "under a Beta), so that there is no maximum to climb to. Give priors concentrations of at least 1, or "
            "leave them out with EM(priors=False); move data off the edge, or give them a component of their own."
        )
    shown = -math.inf if objective < 0 else math.nan  # impossible data are kept finite, a long way down
    return StartError(
        f"The objective at the start is {shown}. No step can improve on it: check the data for values outside the "
        f"support, and give init= values under which every datum is possible.{_holes(problem)}"
    )


def _holes(problem: Problem) -> str:
    """Which arguments of the model hold what is no number, as a sentence."""
    named = {f"argument {i}": a for i, a in enumerate(problem.args)} | {repr(n): a for n, a in problem.kwargs.items()}
    for name, given in named.items():
        value = torch.as_tensor(given) if isinstance(given, np.ndarray) else given
        if isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point() and value.dim():
            rows = (~value.isfinite()).reshape(len(value), -1).any(-1).nonzero()
            if len(rows):
                return (
                    f" The model's {name} holds NaN or infinite values in {len(rows)} rows, the first in row "
                    f"{int(rows[0])}; drop them, or hide them with poutine.mask or fn.mask()."
                )
    return ""
