"""Gamma: T(x) = (log x, x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["Gamma"]


@dataclass(frozen=True)
class Gamma:
    """Gamma(concentration, rate).

    rate = sum concentration N over sum x; the concentration takes Newton's method.
    Conjugate: Gamma on the rate; InverseGamma on its reciprocal, the scale.
    """

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("concentration", domain=constraints.positive, concentration=True),
        Argument("rate", domain=constraints.positive),
    )
    rank: ClassVar[int] = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"concentration": fn.concentration, "rate": fn.rate}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        return torch.stack([x.log().clamp_min(-1e30), x])

    def base_measure(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape)

    def coefficients(self, *, concentration: Tensor, rate: Tensor) -> Tensor:
        constant = concentration * rate.log() - concentration.lgamma()
        return torch.stack(torch.broadcast_tensors(concentration - 1, -rate, constant), -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        if name != "rate":
            return None
        shape, x = cells.pool(cells.args["concentration"] * cells.stats[:, 2]), cells.pool(cells.stats[:, 1])
        if cells.pseudo is not None:
            shape, x = shape + cells.pseudo[:, 0], x + cells.pseudo[:, 1]
        return shape / x

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        kind = type(prior).__name__
        if name == "rate" and kind == "Gamma" and link == "identity":
            return torch.stack([prior.concentration - 1, prior.rate], -1)
        if name == "rate" and kind == "InverseGamma" and link == "reciprocal":
            return torch.stack([prior.concentration + 1, prior.rate], -1)
        return None
