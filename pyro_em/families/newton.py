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

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["newton", "newton_in_pieces"]

Pieces = Callable[[], Iterable[tuple[Family, Cells]]]

ITERATIONS = 100
HALVINGS = 40
PRECISION = 1e-22  # squared distance to the maximum, in standard deviations of one datum
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
    """
    cells = Cells(stats.detach(), {name: value.detach() for name, value in args.items()}, group, size)
    return newton_in_pieces(family, names, lambda: ((family, cells),), values)


def newton_in_pieces(
    family: Family, names: Sequence[str], pieces: Pieces, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """:func:`newton` over the cells of all pieces, which are asked for anew whenever they are needed.

    Args:
        family: whose arguments.
        pieces: the cells, each with the family of its data; their groups are the same.
    """
    charts = tuple(_Chart.of(argument, values[argument.name]) for argument in family.args if argument.name in names)
    objective = _Objective(pieces, charts)
    free = torch.cat([torch.full((chart.width,), chart.free) for chart in charts])
    at = start = torch.cat([chart.start for chart in charts], -1)
    ceiling = torch.cat([torch.full((chart.width,), chart.ceiling, dtype=at.dtype) for chart in charts])
    count = _total(cells.pool(cells.stats[:, -1]) for _, cells in pieces())
    active = count > 0
    before = torch.full_like(count, torch.inf)
    for _ in range(ITERATIONS):
        height, noise, gradient, hessian = objective.expand(at)
        finite = height.isfinite() & gradient.isfinite().all(-1) & hessian.isfinite().all(-1).all(-1)
        step, concave = _direction(*(part.nan_to_num(0.0, 0.0, 0.0) for part in (gradient, hessian)))
        reach = step.abs().masked_fill(free, 0.0).amax(-1)
        step = step * (REACH / reach.clamp_min(REACH)).unsqueeze(-1)
        step = torch.minimum(step, (ceiling - at).clamp_min(0.0))
        gain = (gradient * step).sum(-1)
        quiet = gain < 10 * noise
        # Where rounding hides the rise, the predicted gain tells: it falls quadratically until rounding hides it too.
        active = active & finite & (gain > PRECISION * count) & ~(quiet & concave & (gain > 0.25 * before))
        if not active.any():
            break
        at, active = _search(objective, at, step, torch.where(quiet, height - noise, height), quiet, gain, active)
        before = gain
    moved = (at != start).any(-1)
    return {chart.name: chart.leave(part, moved) for chart, part in objective.split(at)}


@dataclass(frozen=True)
class _Chart:
    """Coordinates without bounds of one argument, flattened to shape (G, width)."""

    name: str
    free: bool
    transform: Transform
    shape: torch.Size
    origin: Tensor
    ceiling: float

    @classmethod
    def of(cls, argument: Argument, origin: Tensor) -> _Chart:
        transform, origin = biject_to(argument.domain), origin.detach()
        ceiling = math.log(argument.largest)  # of a positive number, whose coordinate is its logarithm
        shape = transform.inv(origin).shape
        return cls(argument.name, argument.domain in REAL, transform, shape, origin, ceiling)

    @property
    def width(self) -> int:
        return self.shape[1:].numel()

    @property
    def start(self) -> Tensor:
        at = self.transform.inv(self.origin).reshape(len(self.origin), self.width)
        return at if self.free else at.clamp(-700.0, 700.0)

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


def _direction(gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """An ascent direction, Newton's own where the Hessian is negative definite; and whether it is.

    Dividing by the diagonal first makes it independent of the units of the coordinates.
    """
    unit = hessian.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-150).rsqrt()
    values, vectors = torch.linalg.eigh(-hessian * unit.unsqueeze(-1) * unit.unsqueeze(-2))
    along = (vectors.mT @ (unit * gradient).unsqueeze(-1)).squeeze(-1) / values.abs().clamp_min(1e-14)
    return unit * (vectors @ along.unsqueeze(-1)).squeeze(-1), (values > 0).all(-1)


def _search(
    objective: _Objective, at: Tensor, step: Tensor, floor: Tensor, quiet: Tensor, gain: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    """Halves each group's step until it rises above the floor, by a tenth of what the slope promises if not quiet."""
    slope = torch.where(quiet, 0.0, 0.1 * gain)
    pending, length = active, 1.0
    for _ in range(HALVINGS):
        trial = at + length * step
        risen = pending & (objective.height(trial) >= floor + length * slope)
        at = torch.where(risen.unsqueeze(-1), trial, at)
        pending = pending & ~risen
        if not pending.any():
            break
        length /= 2
    return at, active & ~pending
