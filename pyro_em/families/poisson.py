"""Poisson: T(x) = x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family, log_or_never

__all__ = ["Poisson"]


@dataclass(frozen=True)
class Poisson:
    """Poisson(rate): the rate is the mean. Conjugate: Gamma."""

    args: ClassVar[tuple[Argument, ...]] = (Argument("rate", domain=constraints.positive),)
    rank: ClassVar[int] = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"rate": fn.rate}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def base_measure(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x + 1)

    def coefficients(self, *, rate: Tensor) -> Tensor:
        return torch.stack([log_or_never(rate), -rate], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        x, n = cells.pool(cells.stats).unbind(-1)
        if cells.pseudo is not None:
            x, n = x + cells.pseudo[:, 0], n + cells.pseudo[:, 1]
        return x / n

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        if type(prior).__name__ != "Gamma" or link != "identity":
            return None
        return torch.stack([prior.concentration - 1, prior.rate], -1)
