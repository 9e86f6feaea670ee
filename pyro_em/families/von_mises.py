"""VonMises: T(x) = (cos x, sin x)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["VonMises"]


@dataclass(frozen=True)
class VonMises:
    """VonMises(loc, concentration), an angle in radians.

    loc is the direction of the sum of concentration (cos x, sin x); the concentration takes Newton's method.
    Conjugate: VonMises on loc. The normaliser is exact where torch's polynomial of log I0 is off by up to 5e-7.
    """

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("loc"),
        Argument("concentration", domain=constraints.positive, concentration=True),
    )
    rank: ClassVar[int] = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"loc": fn.loc, "concentration": fn.concentration}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        return torch.stack([x.cos(), x.sin()])

    def base_measure(self, x: Tensor) -> Tensor:
        return x.new_full((), -math.log(2 * math.pi)).expand(x.shape)

    def coefficients(self, *, loc: Tensor, concentration: Tensor) -> Tensor:
        constant = -(torch.special.i0e(concentration).log() + concentration)
        parts = (concentration * loc.cos(), concentration * loc.sin(), constant)
        return torch.stack(torch.broadcast_tensors(*parts), -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        if name != "loc":
            return None
        resultant = cells.pool(cells.args["concentration"].unsqueeze(-1) * cells.stats[:, :2])
        if cells.pseudo is not None:
            resultant = resultant + cells.pseudo
        return torch.atan2(resultant[:, 1], resultant[:, 0])

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        if name != "loc" or type(prior).__name__ != "VonMises" or link != "identity":
            return None
        return torch.stack([prior.concentration * prior.loc.cos(), prior.concentration * prior.loc.sin()], -1)
