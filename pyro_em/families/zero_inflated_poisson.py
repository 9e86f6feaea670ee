"""ZeroInflatedPoisson: T(x) = (1[x = 0], x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["ZeroInflatedPoisson"]


@dataclass(frozen=True)
class ZeroInflatedPoisson:
    """ZeroInflatedPoisson(gate, rate), both by Newton's method; no prior is conjugate.

    log f(0) = log(gate + (1 - gate) exp(-rate)) is a number for each argument, so two features hold everything.
    """

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("gate", domain=constraints.unit_interval),
        Argument("rate", domain=constraints.positive),
    )
    rank: ClassVar[int] = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"gate": fn.gate, "rate": fn.base_dist.rate}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        return torch.stack([(x == 0).to(x.dtype), x])

    def base_measure(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x + 1)

    def coefficients(self, *, gate: Tensor, rate: Tensor) -> Tensor:
        closed, opened = gate.log().clamp_min(-1e30), torch.log1p(-gate).clamp_min(-1e30)
        # log f(0) less the Poisson part, which the constant already holds.
        zero = torch.logaddexp(torch.zeros_like(opened - rate), closed - opened + rate)
        return torch.stack(torch.broadcast_tensors(zero, rate.log().clamp_min(-1e30), opened - rate), -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        return None

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        return None
