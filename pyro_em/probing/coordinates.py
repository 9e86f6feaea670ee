"""All parameters of a fit as one vector, and distinct values for them by which they can be told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_em.params import Leaf

__all__ = ["Coordinates", "distinct_values"]


@dataclass(frozen=True)
class Coordinates:
    """Where each parameter's elements stand in the vector theta of all constrained values, float64.

    Attributes:
        shapes: by name, in order.
        constraints: by name.
    """

    shapes: dict[str, tuple[int, ...]]
    constraints: dict[str, Any]

    @classmethod
    def of(cls, leaves: Mapping[str, Leaf]) -> Coordinates:
        """The coordinates of a fit's parameters."""
        shapes = {name: tuple(leaf.value().shape) for name, leaf in leaves.items()}
        return cls(shapes, {name: leaf.constraint for name, leaf in leaves.items()})

    def starts(self) -> dict[str, int]:
        """Position of each parameter's first element."""
        at, found = 0, {}
        for name, shape in self.shapes.items():
            found[name] = at
            at += prod(shape)
        return found

    def flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """All values as theta."""
        parts = [values[name].detach().reshape(-1).to(torch.float64) for name in self.shapes]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of theta by name."""
        parts = theta.split([prod(shape) for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def owner(self) -> Tensor:
        """For each element of theta, the number of its parameter."""
        sizes = torch.tensor([prod(shape) for shape in self.shapes.values()], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


def distinct_values(leaves: Mapping[str, Leaf]) -> list[dict[str, Tensor]]:
    """Three sets of values inside all constraints; in each, no two elements are alike.

    Values come off one grid over all parameters, so that their spacing is known. The first set is positive wherever it
    may be, so that each link has one inverse, and in the opposite order of the parameters in place. The second has the
    opposite order and opposite signs of the first, which shows what depends on either: sorting, ``if a > b``, a root of
    a square. The third is random in both.
    """
    total = sum(leaf.unconstrained.numel() for leaf in leaves.values())
    first, third = _against(_grid(total), leaves), _grid(total)
    signs = torch.where(torch.rand(total) < 0.5, -1.0, 1.0).to(torch.float64)
    return [
        _spread(leaves, first, torch.ones_like(signs)),
        _spread(leaves, 1 - first, -torch.ones_like(signs)),
        _spread(leaves, third, signs),
    ]


def _grid(total: int) -> Tensor:
    jitter = 0.2 * (torch.rand(total, dtype=torch.float64) - 0.5)
    return (torch.randperm(total) + 0.5 + jitter) / max(total, 1)


def _against(grid: Tensor, leaves: Mapping[str, Leaf]) -> Tensor:
    """The grid's values in the opposite order of the parameters in place; of equal ones, in any."""
    here = torch.cat([torch.zeros(0), *(leaf.unconstrained.detach().reshape(-1) for leaf in leaves.values())])
    shuffled = torch.randperm(len(here))
    found = torch.empty_like(grid)
    found[shuffled[here[shuffled].argsort(descending=True)]] = grid.sort().values
    return found


def _spread(leaves: Mapping[str, Leaf], grid: Tensor, signs: Tensor) -> dict[str, Tensor]:
    found, at = {}, 0
    for name, leaf in leaves.items():
        part = slice(at, at := at + leaf.unconstrained.numel())
        shape = leaf.unconstrained.shape
        value = _inside(leaf, grid[part].reshape(shape), signs[part].reshape(shape))
        found[name] = value.to(leaf.unconstrained.dtype)
    return found


def _inside(leaf: Leaf, u: Tensor, signs: Tensor) -> Tensor:
    constraint, shape = leaf.constraint, leaf.value().shape
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint in (constraints.real, constraints.real_vector):
        return signs * (0.5 + u)
    if constraint is constraints.simplex:
        weights = 0.3 + u
        return weights / weights.sum(-1, keepdim=True)
    if isinstance(constraint, constraints.interval | constraints.half_open_interval):
        low, high = constraint.lower_bound, constraint.upper_bound
        return low + (0.1 + 0.8 * u) * (high - low)
    bound = getattr(constraint, "lower_bound", None)
    if bound is not None and u.shape == shape:
        return bound + 0.5 + u
    return transform_to(leaf.constraint)(2 * u - 1)  # coordinates of every other kind of set are free
