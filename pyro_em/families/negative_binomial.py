"""NegativeBinomial: T(x) = (1[x > 0], 1[x > 1], ..., x), a step function for each count seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import clamp_probs

from pyro_em.families.base import Argument, Cells, Family, log_or_never

__all__ = ["NegativeBinomial"]


@dataclass(frozen=True)
class NegativeBinomial:
    """NegativeBinomial(total_count, probs): successes of probability ``probs`` before ``total_count`` failures.

    log Gamma(r + x) - log Gamma(r) = sum_j 1[x > j] log(r + j) makes it linear in the features.
    probs = sum x over sum (x + r N); the total count r takes Newton's method. Conjugate: Beta on probs.

    Attributes:
        levels: the largest count that :meth:`features` can represent.
    """

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("total_count", domain=constraints.positive, largest=1e8),  # a Poisson
        Argument("probs", domain=constraints.unit_interval),
    )
    rank: ClassVar[int] = 0

    levels: int = 0

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls(int(value.max()) if value.numel() else 0)

    def join(self, other: Family) -> Family:
        return self if not isinstance(other, NegativeBinomial) or other.levels <= self.levels else other

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"total_count": fn.total_count, "probs": fn.probs}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        if x.numel() and x.max() > self.levels:
            raise ValueError(
                f"These statistics of NegativeBinomial hold counts up to {self.levels}, the largest seen when the "
                f"family was made. Got a count of {int(x.max())}. Join it with the family of the new data."
            )
        steps = torch.arange(self.levels, dtype=x.dtype, device=x.device).reshape(-1, *[1] * x.dim())
        return torch.cat([(x > steps).to(x.dtype), x.unsqueeze(0)])

    def base_measure(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x + 1)

    def coefficients(self, *, total_count: Tensor, probs: Tensor) -> Tensor:
        probs = clamp_probs(probs)  # as torch's own density has it
        r, p = (part.unsqueeze(-1) for part in torch.broadcast_tensors(total_count, probs))
        steps = r + torch.arange(self.levels, dtype=r.dtype, device=r.device)
        return torch.cat([log_or_never(torch.cat([steps, p], -1)), r * torch.log1p(-p)], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        if name != "probs":
            return None
        successes = cells.pool(cells.stats[:, -2])
        failures = cells.pool(cells.args["total_count"] * cells.stats[:, -1])
        if cells.pseudo is not None:
            successes, failures = successes + cells.pseudo[:, 0], failures + cells.pseudo[:, 1]
        return successes / (successes + failures)

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        if name != "probs" or type(prior).__name__ != "Beta" or link != "identity":
            return None
        return torch.stack([prior.concentration1 - 1, prior.concentration0 - 1], -1)
