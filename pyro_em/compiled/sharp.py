"""Concentrations that grow without limit: how components collapse in families that have no scale.

A Gamma, Beta, Dirichlet or VonMises on one datum, or on several equal ones, gains without limit as its concentrations
grow together. In units of the mean, or in radians, its variance is the reciprocal of the least of them, so that the
limits here are numbers without a unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["CEILING", "SHARP", "ceilings", "concentrations", "least"]

# Beyond SHARP a log-density is a difference of terms whose rounding errors count; CEILING is what is held instead.
SHARP = {torch.float64: 1e9, torch.float32: 1e6}
CEILING = 1e6


def concentrations(kind: Any) -> list[str]:
    """The arguments of a family that are concentrations."""
    return [a.name for a in kind.args if a.concentration]


def least(kind: Any, of_cells: Mapping[str, Tensor], group: Tensor, size: int) -> Tensor:
    """The least concentration in the cells of each group, shape (G,).

    Args:
        kind: a family that has some.
        of_cells: its arguments, shape (C, *block).
        group: of each cell, shape (C,).
        size: number of groups G.
    """
    lowest = torch.stack([of_cells[n].reshape(len(group), -1).amin(1) for n in concentrations(kind)]).amin(0)
    return lowest.new_full((size,), torch.inf).scatter_reduce(0, group, lowest, "amin")


def ceilings(kind: Any, lowest: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How far values (G, *block) may go whose groups have this least concentration (G,).

    Where it is beyond ``CEILING``, the least of them alone is held there: to hold it is to hold the variance.
    """
    found = {}
    for name in values.keys() & set(concentrations(kind)):
        level = lowest.reshape(-1, *[1] * (values[name].dim() - 1))
        unbounded = torch.full_like(values[name], torch.inf)
        found[name] = unbounded.masked_fill((level > CEILING) & (values[name] == level), CEILING)
    return found
