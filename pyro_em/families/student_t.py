"""StudentT as a scale mixture of normals: T(x) = (u, u x, u x^2, log u) in expectation over the precision u."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["StudentT"]


def _normaliser(half: Tensor) -> Tensor:
    """log Gamma(half + 1/2) - log Gamma(half) - log(half) / 2, which goes to nothing; by its series where logarithms
    would leave only their rounding errors (Abramowitz & Stegun 1964, 6.1.47).
    """
    far = half > 1e3
    near = torch.where(far, 1.0, half)
    inverse = torch.where(far, half, 1e3).reciprocal()
    series = -inverse / 8 + inverse**3 / 192
    return torch.where(far, series, torch.lgamma(near + 0.5) - torch.lgamma(near) - 0.5 * near.log())


@dataclass(frozen=True)
class StudentT:
    """StudentT(df, loc, scale): x | u is Normal(loc, scale / sqrt u), u is Gamma(df / 2, df / 2).

    loc = sum u x / scale^2 over sum u / scale^2; scale^2 = sum u (x - loc)^2 over sum N; df takes Newton's method.
    Conjugate, with u as weights: Normal on loc; InverseGamma on scale^2; Gamma on 1 / scale^2.
    The inner E-step is that of Liu and Rubin, ML estimation of the t distribution, Statistica Sinica 5 (1995), 19-39.
    """

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("df", domain=constraints.positive, largest=1e7),  # a Normal
        Argument("loc", location=True),
        Argument("scale", domain=constraints.positive, spread=True),
    )
    rank: ClassVar[int] = 0
    augmented: ClassVar[bool] = True

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"df": fn.df, "loc": fn.loc, "scale": fn.scale}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        raise TypeError("The features of StudentT depend on its arguments. Got none. Call augment(x, **args) instead.")

    def augment(self, x: Tensor, *, df: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        rate = df + ((x - loc) / scale).square()
        u = (df + 1) / rate
        log_u = torch.digamma((df + 1) / 2) - (rate / 2).log()
        return torch.stack(torch.broadcast_tensors(u, u * x, u * x * x, log_u))

    def log_prob(self, x: Tensor, *, df: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        tail = (df + 1) / 2 * torch.log1p(((x - loc) / scale).square() / df)
        return _normaliser(df / 2) - scale.log() - tail

    def base_measure(self, x: Tensor) -> Tensor:
        return x.new_full((), -0.5 * math.log(2 * math.pi)).expand(x.shape)

    def coefficients(self, *, df: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        half, precision = df / 2, scale.reciprocal().square()
        weight = -0.5 * precision * loc * loc - half
        constant = half * half.log() - torch.lgamma(half) - scale.log()
        parts = (weight, precision * loc, -0.5 * precision, half - 0.5, constant)
        return torch.stack(torch.broadcast_tensors(*parts), -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        u, ux, uxx, _, n = cells.stats.unbind(-1)
        if name == "df":
            return None
        if name == "loc":
            precision = cells.args["scale"].reciprocal().square()
            linear, total = cells.pool(precision * ux), cells.pool(precision * u)
            if cells.pseudo is not None:
                linear, total = linear + cells.pseudo[:, 0], total + cells.pseudo[:, 1]
            return linear / total
        loc = cells.args["loc"]
        squares, total = cells.pool(uxx - 2 * loc * ux + loc * loc * u), cells.pool(n)
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
