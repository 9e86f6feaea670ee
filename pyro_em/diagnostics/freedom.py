"""How many dimensions a constrained parameter has, and coordinates of just that many.

Pyro keeps a parameter as unconstrained numbers u, and some constraints take more of them than there are dimensions: a
softmax of K numbers is a simplex of K - 1 dimensions, a lower-triangular matrix ignores what stands above its diagonal.
Directions of u that leave the value as it is carry no information and must not be counted. Neither must probabilities
that are exactly zero and stay so: a row of K with k of them has K - 1 - k dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_em.params import Leaf

__all__ = ["Freedom", "element_labels", "free_dimensions"]

# Coordinates of these constraints are logarithms, log-odds or differences of logarithms, whatever the data's unit.
LOGARITHMIC = (
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
    constraints.interval,
    constraints.half_open_interval,
    type(constraints.simplex),
)


@dataclass(frozen=True)
class Freedom:
    """Free coordinates of a parameter, about its present value.

    The parameter is a batch of B events of m unconstrained numbers each, which the constraint maps to q values: scalars
    one by one (m = q = 1) where it is elementwise, the rows of a simplex, whole matrices. All have as many columns in
    the basis, r; where rows differ in their zeros, those that have fewer dimensions have columns that are not ``live``.

    Args:
        leaf: the parameter.
    """

    leaf: Leaf

    @cached_property
    def is_elementwise(self) -> bool:
        """Whether every number is constrained by itself."""
        return _event_dims(self.constraint) == (0, 0)

    @cached_property
    def constraint(self) -> Any:
        """The constraint on an event."""
        found = self.leaf.constraint
        while isinstance(found, constraints.independent):
            found = found.base_constraint
        return found

    @property
    def is_logarithmic(self) -> bool:
        """Whether coordinates are free of units, so that a step of one is large for any data."""
        return isinstance(self.constraint, LOGARITHMIC)

    @property
    def is_simplex(self) -> bool:
        """Whether events are probabilities."""
        return isinstance(self.constraint, type(constraints.simplex))

    @cached_property
    def point(self) -> Tensor:
        """The unconstrained numbers, shape (B, m), float64."""
        return self.events(self.leaf.unconstrained.detach().to(torch.float64))

    def events(self, unconstrained: Tensor) -> Tensor:
        """A tensor of the leaf's shape as (B, m)."""
        dims = self._domain_dims
        shape = unconstrained.shape[: unconstrained.dim() - dims]
        return unconstrained.reshape(math.prod(shape), -1)

    @cached_property
    def basis(self) -> Tensor:
        """Orthonormal free directions, shape (B, m, r): each moves the value, and together they do all that u can.

        Columns that are not ``live`` are zero.
        """
        if self.zeros is not None:
            return _within_support(self.zeros)
        if self.is_elementwise:
            return torch.ones(len(self.point), 1, 1, dtype=torch.float64)
        jacobian = self._jacobian(_generic(self.point[:1]))[0]
        rank = int(torch.linalg.matrix_rank(jacobian))
        rows = torch.linalg.svd(jacobian).Vh
        here = self._jacobian(self.point)
        if bool(((here @ rows[rank:].mT).abs() <= 1e-12).all()):  # the same directions are idle everywhere
            return rows[:rank].mT.expand(len(self.point), -1, -1)
        return torch.linalg.svd(here).Vh[:, :rank].mT

    @cached_property
    def zeros(self) -> Tensor | None:
        """Entries of each row that are exactly zero and stay so, shape (B, m)."""
        return None if self.leaf.zeros is None else self.events(self.leaf.zeros)

    @cached_property
    def live(self) -> Tensor:
        """Which columns of the basis are free directions, shape (B, r)."""
        return self.basis.any(1)

    @property
    def value(self) -> Tensor:
        """The constrained value, float64, its zeros exact."""
        value = self.leaf.value().detach().to(torch.float64)
        if self.leaf.zeros is None:
            return value
        kept = value.masked_fill(self.leaf.zeros, 0.0)
        return kept / kept.sum(-1, keepdim=True)

    def gathered(self, table: Tensor) -> Tensor:
        """Free coordinates as one vector, shape (size,), from a table of shape (B, r)."""
        return table[self.live]

    def scattered(self, coordinates: Tensor) -> Tensor:
        """The table, shape (B, r), of a vector of free coordinates, zero in columns that are not ``live``."""
        return coordinates.new_zeros(self.live.shape).masked_scatter(self.live, coordinates)

    @cached_property
    def slope(self) -> Tensor:
        """How values move along the basis: shape (B, q, r)."""
        return self._jacobian(self.point) @ self.basis

    @property
    def size(self) -> int:
        """Number of free coordinates."""
        return int(self.live.sum())

    def _jacobian(self, point: Tensor) -> Tensor:
        """Of values in unconstrained numbers, shape (B, q, m)."""
        if self.zeros is not None:
            p = point.masked_fill(self.zeros, -torch.inf).softmax(-1)
            return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        if self.is_elementwise:
            with torch.enable_grad():
                u = point.detach().requires_grad_(True)
                value = transform_to(self.constraint)(u)
                slope = torch.autograd.grad(value.sum(), u)[0] if value.requires_grad else torch.ones_like(u)
            return slope.unsqueeze(-1)
        return torch.stack([torch.autograd.functional.jacobian(self._event_value, row) for row in point])

    def _event_value(self, row: Tensor) -> Tensor:
        dims = self._domain_dims
        shape = self.leaf.unconstrained.shape[self.leaf.unconstrained.dim() - dims :]
        return transform_to(self.constraint)(row.reshape(shape)).reshape(-1)

    @cached_property
    def _domain_dims(self) -> int:
        if isinstance(self.constraint, constraints.cat | constraints.stack):  # made of others along some dimension
            return self.leaf.unconstrained.dim()
        return _event_dims(self.constraint)[0]


def free_dimensions(leaf: Leaf) -> int:
    """Dimensions of the set that the parameter's constraint leaves: K - 1 for a simplex of K, D (D + 1) / 2 for a
    covariance matrix; entries that are zero and stay so are none.
    """
    freedom = Freedom(leaf)
    if freedom.zeros is not None:
        return int((~freedom.zeros).sum()) - len(freedom.zeros)
    if freedom.is_elementwise:
        return leaf.unconstrained.numel()
    events = freedom.point
    if not len(events):
        return 0
    return len(events) * int(torch.linalg.matrix_rank(freedom._jacobian(_generic(events[:1]))[0]))


def element_labels(name: str, shape: torch.Size) -> list[str]:
    """``name[i,j]`` for each element, in row-major order; the name itself for a scalar."""
    if not shape:
        return [name]
    return [
        f"{name}[{','.join(map(str, index))}]"
        for index in torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist()
    ]


def _event_dims(constraint: Any) -> tuple[int, int]:
    if isinstance(constraint, constraints.cat | constraints.stack):
        return -1, -1
    transform = transform_to(constraint)
    return transform.domain.event_dim, transform.codomain.event_dim


def _within_support(zeros: Tensor) -> Tensor:
    """Orthonormal directions in which the entries of rows that are not ``zeros`` move against each other.

    Args:
        zeros: shape (B, m).

    Returns:
        Shape (B, m, m - 1), filled up with columns of zeros.
    """
    rows, size = zeros.shape
    basis = torch.zeros(rows, size, size - 1, dtype=torch.float64)
    for pattern in zeros.unique(dim=0):
        inside = (~pattern).nonzero().squeeze(-1)
        against = torch.eye(len(inside), dtype=torch.float64) - 1 / len(inside)  # all that sums to zero
        directions = torch.zeros(size, size - 1, dtype=torch.float64)
        directions[inside, : len(inside) - 1] = torch.linalg.svd(against).U[:, : len(inside) - 1]
        basis[(zeros == pattern).all(-1)] = directions
    return basis


def _generic(events: Tensor) -> Tensor:
    """A point at which a Jacobian has the rank that it has almost everywhere."""
    return torch.linspace(-0.7, 0.9, events.numel(), dtype=torch.float64).sin().reshape(events.shape)
