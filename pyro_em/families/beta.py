"""Beta: T(x) = (log x, log(1 - x))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["Beta"]


@dataclass(frozen=True)
class Beta:
    """Beta(concentration1, concentration0), both by Newton's method; no prior is conjugate."""

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("concentration1", domain=constraints.positive, concentration=True),
        Argument("concentration0", domain=constraints.positive, concentration=True),
    )
    rank: ClassVar[int] = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"concentration1": fn.concentration1, "concentration0": fn.concentration0}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        return torch.stack([x.log(), torch.log1p(-x)]).clamp_min(-1e30)

    def base_measure(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape)

    def coefficients(self, *, concentration1: Tensor, concentration0: Tensor) -> Tensor:
        one, zero = torch.broadcast_tensors(concentration1, concentration0)
        return torch.stack([one - 1, zero - 1, (one + zero).lgamma() - one.lgamma() - zero.lgamma()], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        return None

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        return None
