"""Where unconstrained coordinates run off: probabilities next to zero or one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import constraints, transform_to

__all__ = ["coordinates_of", "is_near_edge"]

NEAR = 0.01  # as a share of the interval


def is_near_edge(value: Tensor, constraint: Any) -> bool:
    """Whether an element on a simplex or in an interval lies next to an end of it."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is constraints.simplex:
        low, high = 0.0, 1.0
    elif isinstance(constraint, constraints.interval | constraints.half_open_interval):
        low, high = constraint.lower_bound, constraint.upper_bound
    else:
        return False
    share = (value.detach() - low) / (high - low)
    return bool(((share < NEAR) | (share > 1 - NEAR)).any())


def coordinates_of(value: Tensor, constraint: Any) -> Tensor:
    """Finite coordinates of a value, also of one on the edge of its constraint."""
    edge = 700.0
    return transform_to(constraint).inv(value).nan_to_num(nan=0.0, posinf=edge, neginf=-edge)
