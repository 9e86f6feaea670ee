"""Dirichlet: T(x) = log x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["Dirichlet"]


@dataclass(frozen=True)
class Dirichlet:
    """Dirichlet(concentration), by Newton's method; no prior is conjugate."""

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("concentration", rank=1, domain=constraints.independent(constraints.positive, 1), concentration=True),
    )
    rank: ClassVar[int] = 1

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"concentration": fn.concentration}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        return x.log().clamp_min(-1e30)

    def base_measure(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[1:])

    def coefficients(self, *, concentration: Tensor) -> Tensor:
        constant = concentration.sum(-1).lgamma() - concentration.lgamma().sum(-1)
        return torch.cat([concentration - 1, constant.unsqueeze(-1)], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        return None

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        return None
