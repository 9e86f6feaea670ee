"""Newton's method for arguments without a closed form: every group of cells at once, each for itself.

In coordinates without bounds (logarithm, logit) the objective of a group is maximised by Newton steps on its Hessian
with the eigenvalues made negative (Nocedal and Wright, Numerical Optimization, 2006, section 3.4), shortened until the
objective rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["Objective", "ascend", "newton", "newton_in_pieces"]

Pieces = Callable[[], Iterable[tuple[Family, Cells]]]

ITERATIONS = 100
HALVINGS = 40
PRECISION = 1e-22  # squared distance to the maximum, in standard deviations of one datum
NEGLIGIBLE = 1e-13  # data: a group that holds no more of them says nothing
REACH = 5.0  # of one step, in coordinates of bounded arguments
REAL = (constraints.real, constraints.real_vector)


def newton(
    family: Family,
    names: Sequence[str],
    stats: Tensor,
    args: Mapping[str, Tensor],
    group: Tensor | None,
    size: int,
    values: Mapping[str, Tensor],
    ceiling: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The arguments ``names`` that jointly maximise each group's expected log-likelihood, the others held fixed.

    f_g = sum over the cells c of group g of :func:`~pyro_em.families.base.expected_log_likelihood` (c). No f_g falls
    (but for rounding); a group without any count, or whose objective or gradient is not finite, keeps its values.

    Args:
        family: whose coefficients; they must be twice differentiable.
        names: arguments to maximise, of rank 0 or 1, all of the same groups.
        stats: shape (C, S + 1), as in :class:`~pyro_em.families.base.Cells`.
        args: all arguments at present, each of shape (C, *block); those of ``names`` may be left out.
        group: shape (C,), which group each cell belongs to; ``None`` where every cell is its own.
        size: number of groups G.
        values: where to start, each of shape (G, *block).
        ceiling: of positive arguments, each of shape (G, *block): how far they may go.
    """
    cells = Cells(stats.detach(), {name: value.detach() for name, value in args.items()}, group, size)
    return newton_in_pieces(family, names, lambda: ((family, cells),), values, ceiling)


def newton_in_pieces(
    family: Family,
    names: Sequence[str],
    pieces: Pieces,
    values: Mapping[str, Tensor],
    ceiling: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """:func:`newton` over the cells of all pieces, which are asked for anew whenever they are needed.

    Args:
        family: whose arguments.
        pieces: the cells, each with the family of its data; their groups are the same.
        ceiling: as there.
    """
    charts = tuple(_Chart.of(argument, values[argument.name]) for argument in family.args if argument.name in names)
    objective = _Objective(pieces, charts)
    free = torch.cat([torch.full((chart.width,), chart.free) for chart in charts])
    start = torch.cat([chart.start for chart in charts], -1)
    top = torch.cat([chart.top((ceiling or {}).get(chart.name)) for chart in charts], -1)
    count = _total(cells.pool(cells.stats[:, -1]) for _, cells in pieces())
    at = ascend(objective, start, free, top, count)
    moved = (at != start).any(-1)
    return {chart.name: chart.leave(part, moved) for chart, part in objective.split(at)}


class Objective(Protocol):
    """A function of coordinates (G, V), for each group by itself."""

    def height(self, at: Tensor) -> Tensor:
        """Its values, shape (G,)."""
        ...

    def expand(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values (G,), the size of their rounding errors (G,), gradients (G, V) and Hessians (G, V, V)."""
        ...


def ascend(objective: Objective, start: Tensor, free: Tensor, top: Tensor, count: Tensor) -> Tensor:
    """Coordinates (G, V) at a maximum of each group's objective, which does not fall (but for rounding).

    Args:
        start: shape (G, V); a group stays there that is empty, or whose objective or gradient is not finite.
        free: which coordinates may move by more than ``REACH`` in one step, shape (V,).
        top: how far each may go, shape (G, V).
        count: number of data behind each group, shape (G,).
    """
    active = count > NEGLIGIBLE
    at = torch.where(active.unsqueeze(-1), start.minimum(top), start)
    before = torch.full_like(count, torch.inf)
    for _ in range(ITERATIONS):
        height, noise, gradient, hessian = objective.expand(at)
        finite = height.isfinite() & gradient.isfinite().all(-1) & hessian.isfinite().all(-1).all(-1)
        gradient, hessian = gradient.nan_to_num(0.0, 0.0, 0.0), hessian.nan_to_num(0.0, 0.0, 0.0)
        step, concave = _direction_below(at >= top - 1e-12, gradient, hessian)
        reach = step.abs().masked_fill(free, 0.0).amax(-1)
        step = step * (REACH / reach.clamp_min(REACH)).unsqueeze(-1)
        step = step * _room(at, top, step).unsqueeze(-1)
        gain = (gradient * step).sum(-1)
        quiet = gain < 10 * noise
        # Where rounding hides the rise, the predicted gain tells: it falls quadratically until rounding hides it too.
        active = active & finite & (gain > PRECISION * count) & ~(quiet & concave & (gain > 0.25 * before))
        if not active.any():
            break
        at, active = _search(objective, at, step, top, torch.where(quiet, height - noise, height), quiet, gain, active)
        before = gain
    return at


@dataclass(frozen=True)
class _Chart:
    """Coordinates without bounds of one argument, flattened to shape (G, width)."""

    free: bool
    transform: Transform
    shape: torch.Size
    origin: Tensor
    argument: Argument

    @classmethod
    def of(cls, argument: Argument, origin: Tensor) -> _Chart:
        transform, origin = biject_to(argument.domain), origin.detach()
        return cls(argument.domain in REAL, transform, transform.inv(origin).shape, origin, argument)

    @property
    def name(self) -> str:
        return self.argument.name

    @property
    def width(self) -> int:
        return self.shape[1:].numel()

    @property
    def start(self) -> Tensor:
        at = self.transform.inv(self.origin).reshape(len(self.origin), self.width)
        return at if self.free else at.clamp(-700.0, 700.0)

    def top(self, ceiling: Tensor | None) -> Tensor:
        """How far its coordinates may go, shape (G, width): that of a positive number is its logarithm."""
        most = torch.full((len(self.origin), self.width), math.log(self.argument.largest), dtype=torch.float64)
        return most if ceiling is None else most.minimum(ceiling.log().reshape(most.shape))

    def value(self, at: Tensor) -> Tensor:
        return self.transform(at.reshape(self.shape))

    def leave(self, at: Tensor, moved: Tensor) -> Tensor:
        """The argument; exactly the one given where nothing moved."""
        moved = moved.reshape(-1, *[1] * (self.origin.dim() - 1))
        return torch.where(moved, self.value(at), self.origin)


@dataclass(frozen=True)
class _Objective:
    """The expected log-likelihood of each group as a function of coordinates (G, V)."""

    pieces: Pieces
    charts: tuple[_Chart, ...]

    def split(self, at: Tensor) -> list[tuple[_Chart, Tensor]]:
        return list(zip(self.charts, at.split([chart.width for chart in self.charts], -1), strict=True))

    def terms(self, family: Family, cells: Cells, at: Tensor) -> Tensor:
        """What each statistic of a piece contributes, shape (C, S + 1)."""
        new = {chart.name: cells.spread(chart.value(part)) for chart, part in self.split(at)}
        stats = cells.stats
        return torch.where(stats == 0, 0.0, family.coefficients(**{**cells.args, **new}) * stats)

    def height(self, at: Tensor) -> Tensor:
        with torch.no_grad():
            return _total(cells.pool(self.terms(family, cells, at).sum(-1)) for family, cells in self.pieces())

    def expand(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Objective (G,), the size of its rounding error (G,), gradient (G, V) and Hessian (G, V, V)."""
        parts = [self._expand(family, cells, at) for family, cells in self.pieces()]
        height, size, gradient, hessian = (_total(part) for part in zip(*parts, strict=True))
        return height, 10 * torch.finfo(at.dtype).eps * size, gradient, hessian

    def _expand(self, family: Family, cells: Cells, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            terms = self.terms(family, cells, at)
            height = cells.pool(terms.sum(-1))
            (gradient,) = torch.autograd.grad(height.sum(), at, create_graph=True)
            rows = [
                torch.autograd.grad(column.sum(), at, retain_graph=True, materialize_grads=True)[0]
                for column in gradient.unbind(-1)
            ]
        size = cells.pool(terms.detach().abs().sum(-1))
        return height.detach(), size, gradient.detach(), torch.stack(rows, -2)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def _direction_below(at_top: Tensor, gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """An ascent direction in which no coordinate that is at its top goes on, and whether it is Newton's own."""
    stuck = at_top & (gradient > 0)
    while True:
        apart = stuck.unsqueeze(-1) | stuck.unsqueeze(-2)
        own = torch.where(apart, torch.diag_embed(-stuck.to(hessian.dtype)), hessian)
        step, concave = _direction(gradient.masked_fill(stuck, 0.0), own)
        pushed = at_top & ~stuck & (step > 0)
        if not bool(pushed.any()):
            return step.masked_fill(stuck, 0.0), concave
        stuck = stuck | pushed


def _room(at: Tensor, top: Tensor, step: Tensor) -> Tensor:
    """The share of each group's step until a coordinate is at its top: cut one by one they would leave a ridge."""
    return torch.where(step > 0, (top - at) / step, torch.inf).amin(-1).clamp(0.0, 1.0)


def _direction(gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """An ascent direction, Newton's own where the Hessian is negative definite; and whether it is.

    Dividing by the diagonal first makes it independent of the units of the coordinates.
    """
    unit = hessian.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-150).rsqrt()
    values, vectors = torch.linalg.eigh(-hessian * unit.unsqueeze(-1) * unit.unsqueeze(-2))
    along = (vectors.mT @ (unit * gradient).unsqueeze(-1)).squeeze(-1) / values.abs().clamp_min(1e-14)
    return unit * (vectors @ along.unsqueeze(-1)).squeeze(-1), (values > 0).all(-1)


def _search(
    objective: Objective,
    at: Tensor,
    step: Tensor,
    top: Tensor,
    floor: Tensor,
    quiet: Tensor,
    gain: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor]:
    """Halves each group's step until it rises above the floor, by a tenth of what the slope promises if not quiet."""
    slope = torch.where(quiet, 0.0, 0.1 * gain)
    pending, length = active, 1.0
    for _ in range(HALVINGS):
        trial = (at + length * step).minimum(top)
        risen = pending & (objective.height(trial) >= floor + length * slope)
        at = torch.where(risen.unsqueeze(-1), trial, at)
        pending = pending & ~risen
        if not pending.any():
            break
        length /= 2
    return at, active & ~pending
