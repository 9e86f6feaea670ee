"""Exponential and Geometric: T(x) = x, the waits in continuous and in discrete time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import clamp_probs

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["Exponential", "Geometric"]


@dataclass(frozen=True)
class Exponential:
    """Exponential(rate): the rate is one over the mean. Conjugate: Gamma."""

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
        return torch.zeros_like(x)

    def coefficients(self, *, rate: Tensor) -> Tensor:
        return torch.stack([-rate, rate.log()], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        x, n = cells.pool(cells.stats).unbind(-1)
        if cells.pseudo is not None:
            x, n = x + cells.pseudo[:, 0], n + cells.pseudo[:, 1]
        return n / x

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        if type(prior).__name__ != "Gamma" or link != "identity":
            return None
        return torch.stack([prior.rate, prior.concentration - 1], -1)


@dataclass(frozen=True)
class Geometric:
    """Geometric(probs), the number of failures before a success: probs is 1 / (1 + mean). Conjugate: Beta."""

    args: ClassVar[tuple[Argument, ...]] = (Argument("probs", domain=constraints.unit_interval),)
    rank: ClassVar[int] = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"probs": fn.probs}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def base_measure(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def coefficients(self, *, probs: Tensor) -> Tensor:
        probs = clamp_probs(probs)
        return torch.stack([torch.log1p(-probs), probs.log()], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        x, n = cells.pool(cells.stats).unbind(-1)
        if cells.pseudo is not None:
            x, n = x + cells.pseudo[:, 0], n + cells.pseudo[:, 1]
        return n / (n + x)

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        if type(prior).__name__ != "Beta" or link != "identity":
            return None
        return torch.stack([prior.concentration0 - 1, prior.concentration1 - 1], -1)
