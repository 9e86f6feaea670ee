"""Categorical, OneHotCategorical and Multinomial: T(x) counts how often each category came up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

from pyro_em.families.base import Argument, Cells, Family, log_or_never

__all__ = ["Categorical", "Multinomial", "OneHotCategorical"]


@dataclass(frozen=True)
class Categorical:
    """Categorical(probs) over ``size`` categories: probabilities are proportions. Conjugate: Dirichlet."""

    size: int
    args: ClassVar[tuple[Argument, ...]] = (Argument("probs", 1, constraints.simplex),)
    rank: ClassVar[int] = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls(fn.probs.shape[-1])

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"probs": fn.probs}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        levels = torch.arange(self.size, dtype=x.dtype).reshape(-1, *[1] * x.dim())
        return (x.unsqueeze(0) == levels).to(x.dtype)

    def base_measure(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def coefficients(self, *, probs: Tensor) -> Tensor:
        return pad(log_or_never(probs), (0, 1))

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        counts = cells.pool(cells.stats[:, :-1])
        if cells.pseudo is not None:
            counts = (counts + cells.pseudo).clamp_min(0.0)
        return counts / counts.sum(-1, keepdim=True)

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        if type(prior).__name__ != "Dirichlet" or link != "identity":
            return None
        return prior.concentration - 1


@dataclass(frozen=True)
class OneHotCategorical(Categorical):
    """OneHotCategorical(probs): the category as a unit vector."""

    rank: ClassVar[int] = 1

    def features(self, x: Tensor) -> Tensor:
        return x

    def base_measure(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[1:])


@dataclass(frozen=True)
class Multinomial(OneHotCategorical):
    """Multinomial(total_count, probs): how often each category came up."""

    def base_measure(self, x: Tensor) -> Tensor:
        counts = x.movedim(0, -1).unsqueeze(0)
        several = (counts * counts != counts).nonzero(as_tuple=True)  # most counts are 0 or 1: log 0! = log 1! = 0
        orders = torch.lgamma(counts.sum(-1) + 1)
        return orders.index_put_(several[:-1], -torch.lgamma(counts[several] + 1), accumulate=True).squeeze(0)
