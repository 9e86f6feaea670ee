"""Newton's method for arguments that elements share in different ways: a rate of all, say, and a shape of each state.

To maximise over one argument after the other creeps along the ridges of such families, and a group is no problem of its
own. So all coordinates move together. The second derivatives are those in the few arguments of each element, carried to
the coordinates by the maps that are known, as in IRLS (McCullagh and Nelder, Generalized Linear Models, 1989, section
2.5): no more passes are needed than a family has arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_em.families.base import Family
from pyro_em.families.newton import NEGLIGIBLE, REAL, ascend

__all__ = ["Chart", "Density", "Elements", "Reach", "can_go_together", "expansion", "is_coupled", "newton_coupled"]

Density = Callable[[Tensor], Tensor]
Chart = Callable[[Tensor], Tensor]
MAX_COORDINATES = 512  # more go in turn, in groups that need no common Hessian


def is_coupled(kind: Any, arguments: int, coordinates: int) -> bool:
    """Whether so many arguments of a family, with so many coordinates, must move together; a location needs not."""
    return arguments > 1 and can_go_together(kind, coordinates)


def can_go_together(kind: Any, coordinates: int) -> bool:
    """Whether arguments of a family, with so many coordinates, may."""
    simple = all(a.rank == 0 and a.domain not in REAL for a in kind.args) and not getattr(kind, "augmented", False)
    return simple and coordinates <= MAX_COORDINATES


@dataclass(frozen=True)
class Reach:
    """How coordinates v (V,) reach one argument of each element, through its predictor.

    The predictor is ``offset + design @ v[columns]``; or, without a design, ``v[index]``.

    Attributes:
        value: from predictors to arguments.
        offset: shape (C,).
        index: shape (C,); -1 where the predictor is the offset alone.
        columns: shape (m,).
        design: shape (C, m).
    """

    value: Callable[[Tensor], Tensor]
    offset: Tensor
    index: Tensor | None = None
    columns: Tensor | None = None
    design: Tensor | None = None

    def predictor(self, at: Tensor) -> Tensor:
        """Shape (C,)."""
        if self.index is not None:
            return torch.where(self.index < 0, self.offset, at[self.index.clamp_min(0)])
        assert self.design is not None and self.columns is not None
        return self.offset + self.design @ at[self.columns]

    def back(self, slope: Tensor, size: int) -> Tensor:
        """From derivatives in predictors, (C, ...), to those in coordinates, (V, ...)."""
        whole = slope.new_zeros(size, *slope.shape[1:])
        if self.index is not None:
            moves = self.index >= 0
            return whole.index_add_(0, self.index[moves], slope[moves])
        assert self.design is not None and self.columns is not None
        return whole.index_add_(0, self.columns, self.design.T @ slope)


@dataclass(frozen=True)
class Elements:
    """Elements of one family.

    Attributes:
        family: whose arguments, all of rank 0.
        stats: expected features and counts, shape (C, S + 1).
        reaches: by argument.
    """

    family: Family
    stats: Tensor
    reaches: Mapping[str, Reach]

    def terms(self, predictors: Mapping[str, Tensor]) -> Tensor:
        """What each statistic contributes, shape (C, S + 1)."""
        args = {name: self.reaches[name].value(eta) for name, eta in predictors.items()}
        return torch.where(self.stats == 0, 0.0, self.family.coefficients(**args) * self.stats)


@dataclass(frozen=True)
class _Objective:
    """The expected log-likelihood as a function of coordinates, as one group: shapes (1, V)."""

    pieces: Callable[[], Iterable[Elements]]
    chart: Chart
    prior: Density | None

    def height(self, at: Tensor) -> Tensor:
        with torch.no_grad():
            values = self.chart(at[0])
            parts = [_height(piece, values) for piece in self.pieces()]
            try:
                parts += [] if self.prior is None else [self.prior(at[0]).reshape(1)]
            except ValueError:  # rounding has taken a trial point out of the prior's support
                return torch.full_like(parts[0], -torch.inf)
            return torch.stack(parts).sum(0)

    def expand(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, slope, bend = _derivatives(self.chart, at[0])
        parts = [_charted(_expand(piece, values), slope, bend) for piece in self.pieces()]
        if self.prior is not None:
            value, gradient, hessian = expansion(self.prior, at[0])
            parts.append((value.reshape(1), value.abs().reshape(1), gradient, hessian))
        height, size, gradient, hessian = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        # What next to no datum speaks of stays: its slope over its curvature is anything.
        idle = (gradient.abs() <= NEGLIGIBLE) & (hessian.diagonal().abs() <= NEGLIGIBLE)
        gradient = gradient.masked_fill(idle, 0.0)
        hessian = torch.where(idle.unsqueeze(-1) | idle, torch.diag(-idle.to(at.dtype)), hessian)
        return height, 10 * torch.finfo(at.dtype).eps * size, gradient.unsqueeze(0), hessian.unsqueeze(0)


def newton_coupled(
    pieces: Callable[[], Iterable[Elements]],
    start: Tensor,
    free: Tensor,
    top: Tensor,
    chart: Chart | None = None,
    prior: Density | None = None,
) -> Tensor:
    """Coordinates (V,) at a maximum of the expected log-likelihood, which does not fall (but for rounding).

    Args:
        pieces: the elements; gone through once for each evaluation.
        start: where to begin, shape (V,).
        free: which coordinates may move far in one step, shape (V,).
        top: how far each may go, shape (V,).
        chart: from each coordinate to what the elements are reached by; ``None``, to itself.
        prior: what a prior on the coordinates adds, in nats; twice differentiable.
    """
    count = torch.stack([piece.stats[:, -1].sum() for piece in pieces()]).sum(0, keepdim=True)
    objective = _Objective(pieces, chart or torch.clone, prior)
    return ascend(objective, start.unsqueeze(0), free, top.unsqueeze(0), count)[0]


Expansion = tuple[Tensor, Tensor, Tensor, Tensor]


def _derivatives(chart: Chart, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, first and second derivatives of an elementwise map, each (V,)."""
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        values = chart(leaf)
        (slope,) = torch.autograd.grad(values.sum(), leaf, create_graph=True, materialize_grads=True)
        bend = torch.zeros_like(at)
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope.sum(), leaf, materialize_grads=True)
    return values.detach(), slope.detach(), bend


def _charted(found: Expansion, slope: Tensor, bend: Tensor) -> Expansion:
    """An expansion in values, in the coordinates behind them."""
    height, size, gradient, hessian = found
    curved = slope.unsqueeze(-1) * hessian * slope + torch.diag(bend * gradient)
    return height, size, slope * gradient, curved


def expansion(f: Density, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A function of a vector (V,): its value, gradient (V,) and Hessian (V, V), by a backward pass a coordinate."""
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        value = f(leaf)
        if not value.requires_grad:
            return value.detach(), torch.zeros_like(at), at.new_zeros(len(at), len(at))
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)
        rows = [
            torch.autograd.grad(slope, leaf, retain_graph=True, materialize_grads=True)[0]
            for slope in (gradient.unbind() if gradient.requires_grad else ())
        ]
    hessian = torch.stack(rows) if rows else at.new_zeros(len(at), len(at))
    return value.detach(), gradient.detach(), hessian


def _height(piece: Elements, at: Tensor) -> Tensor:
    return piece.terms({n: r.predictor(at) for n, r in piece.reaches.items()}).sum().unsqueeze(0)


def _expand(piece: Elements, at: Tensor) -> Expansion:
    """Objective and the size of its terms (1,), gradient (V,) and Hessian (V, V)."""
    reaches, size = list(piece.reaches.values()), len(at)
    with torch.enable_grad():
        predictors = [r.predictor(at).detach().requires_grad_() for r in reaches]
        terms = piece.terms(dict(zip(piece.reaches, predictors, strict=True)))
        first = torch.autograd.grad(terms.sum(), predictors, create_graph=True, materialize_grads=True)
        second = [
            torch.autograd.grad(slope.sum(), predictors, retain_graph=True, materialize_grads=True) for slope in first
        ]
    gradient = torch.stack([r.back(s.detach(), size) for r, s in zip(reaches, first, strict=True)]).sum(0)
    pairs = [
        _cross(one, two, s, size)
        for one, row in zip(reaches, second, strict=True)
        for two, s in zip(reaches, row, strict=True)
    ]
    terms = terms.detach()
    return terms.sum().unsqueeze(0), terms.abs().sum().unsqueeze(0), gradient, torch.stack(pairs).sum(0)


def _cross(one: Reach, two: Reach, curvature: Tensor, size: int) -> Tensor:
    """Second derivatives in coordinates (V, V) from those in two predictors (C,)."""
    if one.index is not None and two.index is not None:
        both = (one.index >= 0) & (two.index >= 0)
        place = one.index[both], two.index[both]
        return curvature.new_zeros(size, size).index_put_(place, curvature[both], accumulate=True)
    if one.design is None:
        return _cross(two, one, curvature, size).T
    assert one.columns is not None
    weighted = two.back(curvature.unsqueeze(-1) * one.design, size)
    return curvature.new_zeros(size, size).index_add_(0, one.columns, weighted.T)
