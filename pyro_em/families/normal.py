"""Normal and LogNormal: T(x) = (x, x^2), of the logarithm for the latter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["LogNormal", "Normal"]


@dataclass(frozen=True)
class Normal:
    """Normal(loc, scale), one dimension.

    loc = sum N x / scale^2 over sum N / scale^2; scale^2 = sum N (x - loc)^2 over sum N, each given the other.
    Conjugate: Normal on loc; InverseGamma on scale^2; Gamma on 1 / scale^2.
    """

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("loc", location=True),
        Argument("scale", domain=constraints.positive, spread=True),
    )
    rank: ClassVar[int] = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"loc": fn.loc, "scale": fn.scale}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        return torch.stack([x, x * x])

    def fill(self, x: Tensor, out: Tensor) -> None:
        out[0] = x
        torch.mul(x, x, out=out[1])

    def base_measure(self, x: Tensor) -> Tensor:
        return x.new_full((), -0.5 * math.log(2 * math.pi)).expand(x.shape)

    def coefficients(self, *, loc: Tensor, scale: Tensor) -> Tensor:
        precision = scale.pow(-2)
        linear = precision * loc
        constant = -torch.addcmul(scale.log(), linear, loc, value=0.5)
        return torch.stack([linear, (-0.5 * precision).expand_as(linear), constant], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        x, xx, n = cells.stats.unbind(-1)
        if name == "loc" and cells.group is None and cells.pseudo is None:
            return x / n
        if name == "loc":
            precision = cells.args["scale"].reciprocal().square()
            linear, total = cells.pool(precision * x), cells.pool(precision * n)
            if cells.pseudo is not None:
                linear, total = linear + cells.pseudo[:, 0], total + cells.pseudo[:, 1]
            return linear / total
        loc = cells.args["loc"]
        squares, total = cells.pool(torch.addcmul(xx, loc, torch.add(loc * n, x, alpha=-2))), cells.pool(n)
        if cells.pseudo is not None:
            squares, total = squares + cells.pseudo[:, 0], total + cells.pseudo[:, 1]
        return (squares.clamp_min(0.0) / total).sqrt()

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        kind = type(prior).__name__
        if name == "loc" and kind == "Normal" and link == "identity":
            precision = prior.scale.reciprocal().square()
            return torch.stack([precision * prior.loc, precision], -1)
        if name == "scale" and kind == "InverseGamma" and link == "sqrt":
            return torch.stack([2 * prior.rate, 2 * (prior.concentration + 1)], -1)
        if name == "scale" and kind == "Gamma" and link == "reciprocal sqrt":
            return torch.stack([2 * prior.rate, 2 * (prior.concentration - 1)], -1)
        return None


@dataclass(frozen=True)
class LogNormal(Normal):
    """LogNormal(loc, scale): the logarithm is Normal(loc, scale)."""

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value.log()

    def base_measure(self, x: Tensor) -> Tensor:
        return -x - 0.5 * math.log(2 * math.pi)
