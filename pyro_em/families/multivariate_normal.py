"""MultivariateNormal: T(x) = (x, x_i x_j for j >= i)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["MultivariateNormal"]


@dataclass(frozen=True)
class MultivariateNormal:
    """MultivariateNormal(loc, scale_tril) in ``size`` dimensions; covariance and precision are links of scale_tril.

    The covariance is that of the data about loc; loc is the mean, weighted by precisions where it is shared over
    several covariances. Conjugate: Normal, element by element, on loc; Wishart on the precision matrix.
    """

    size: int
    args: ClassVar[tuple[Argument, ...]] = (
        Argument("loc", 1, constraints.real_vector, location=True),
        Argument("scale_tril", 2, constraints.lower_cholesky, spread=True),
    )
    rank: ClassVar[int] = 1

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls(fn.event_shape[0])

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"loc": fn.loc, "scale_tril": fn._unbroadcasted_scale_tril}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.size + self.size * (self.size + 1) // 2, *x.shape[1:])
        self.fill(x, out)
        return out

    def fill(self, x: Tensor, out: Tensor) -> None:
        out[: self.size] = x
        at = self.size
        for i in range(self.size):
            torch.mul(x[i], x[i:], out=out[at : at + self.size - i])
            at += self.size - i

    def base_measure(self, x: Tensor) -> Tensor:
        return x.new_full((), -0.5 * self.size * math.log(2 * math.pi)).expand(x.shape[1:])

    def coefficients(self, *, loc: Tensor, scale_tril: Tensor) -> Tensor:
        precision = torch.cholesky_inverse(scale_tril)
        linear = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = -0.5 * (linear * loc).sum(-1) - log_det
        rows, columns, twice = _upper(self.size)
        quadratic = -0.5 * precision[..., rows, columns] * twice
        shape = constant.shape
        parts = [linear.expand(*shape, -1), quadratic.expand(*shape, -1), constant.unsqueeze(-1)]
        return torch.cat(parts, -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        if name == "loc":
            linear, _, n = self._moments(cells.stats)
            precision = torch.cholesky_inverse(cells.args["scale_tril"])
            return self._solve_loc(cells, precision, linear, n)
        factor, failed = torch.linalg.cholesky_ex(self.covariance(cells))
        return torch.where((failed > 0)[:, None, None], torch.nan, factor)

    def covariance(self, cells: Cells) -> Tensor:
        """The covariance about the location, pooled over the cells of each group."""
        linear, second, n = self._moments(cells.stats)
        loc = cells.args["loc"]
        cross = loc.unsqueeze(-1) * linear.unsqueeze(-2)
        about = second - cross - cross.mT + n[:, None, None] * loc.unsqueeze(-1) * loc.unsqueeze(-2)
        scatter, total = cells.pool(about), cells.pool(n)
        if cells.pseudo is not None:
            scatter = scatter + cells.pseudo[:, :-1].reshape(scatter.shape)
            total = total + cells.pseudo[:, -1]
        return scatter / total[:, None, None]

    def _solve_loc(self, cells: Cells, precision: Tensor, linear: Tensor, n: Tensor) -> Tensor:
        if cells.group is None and cells.pseudo is None:
            return linear / n.unsqueeze(-1)
        right = cells.pool((precision @ linear.unsqueeze(-1)).squeeze(-1))
        left = cells.pool(precision * n[:, None, None])
        if cells.pseudo is not None:  # (G, D, 2): precision times mean, and precision, of independent Normals
            right, left = right + cells.pseudo[..., 0], left + torch.diag_embed(cells.pseudo[..., 1])
        solution, failed = torch.linalg.solve_ex(left, right)
        return torch.where((failed > 0)[:, None], torch.nan, solution)

    def _moments(self, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        D = self.size
        rows, columns, _ = _upper(D)
        second = stats.new_empty(len(stats), D, D)
        second[:, rows, columns] = stats[:, D:-1]
        second[:, columns, rows] = stats[:, D:-1]
        return stats[:, :D], second, stats[:, -1]

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        kind = type(prior).__name__
        if name == "loc" and kind == "Normal" and link == "identity":
            precision = prior.scale.reciprocal().square()
            return torch.stack([precision * prior.loc, precision], -1)
        if name == "scale_tril" and kind == "Wishart" and link == "precision_cholesky":
            scatter = torch.cholesky_inverse(prior._unbroadcasted_scale_tril).flatten(-2)
            count = (prior.df - self.size - 1).unsqueeze(-1)
            return torch.cat([scatter.expand(*count.shape[:-1], -1), count.expand(*scatter.shape[:-1], 1)], -1)
        return None


@lru_cache(maxsize=16)
def _upper(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the upper triangle, and how often each entry occurs in a symmetric matrix."""
    rows, columns = torch.triu_indices(size, size)
    return rows, columns, torch.where(rows == columns, 1.0, 2.0).to(torch.float64)
