"""NegativeBinomial: T(x) = (1[x >= a], 1[x >= b], ..., x), a step for each count a < b < ... that was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import clamp_probs

from pyro_em.families.base import Argument, Cells, Family, log_or_never
from pyro_em.stirling import log_rise

__all__ = ["NegativeBinomial"]


@dataclass(frozen=True)
class NegativeBinomial:
    """NegativeBinomial(total_count, probs): successes of probability ``probs`` before ``total_count`` failures.

    log Gamma(r + x) - log Gamma(r) = sum_j 1[x > j] log(r + j), taken together between two counts that were seen, makes
    it linear in the features. probs = sum x over sum (x + r N); the total count r takes Newton's method. Conjugate:
    Beta on probs.

    Attributes:
        levels: the positive counts that :meth:`features` can represent, in order.
    """

    args: ClassVar[tuple[Argument, ...]] = (
        Argument("total_count", domain=constraints.positive, largest=1e8),  # a Poisson
        Argument("probs", domain=constraints.unit_interval),
    )
    rank: ClassVar[int] = 0

    levels: tuple[int, ...] = ()

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls(tuple(value[value > 0].long().unique().tolist()))

    def join(self, other: Family) -> Family:
        if not isinstance(other, NegativeBinomial) or other.levels == self.levels:
            return self
        return NegativeBinomial(tuple(sorted({*self.levels, *other.levels})))

    def holds(self, x: Tensor) -> Tensor:
        """Where x is a count that :meth:`features` can represent."""
        return torch.isin(x, torch.tensor((0, *self.levels), dtype=x.dtype))

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"total_count": fn.total_count, "probs": fn.probs}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        return value

    def features(self, x: Tensor) -> Tensor:
        known = self.holds(x)
        if not bool(known.all()):
            raise ValueError(
                f"These statistics of NegativeBinomial hold {len(self.levels)} positive counts, those seen when the "
                f"family was made. Got a count of {int(x[~known].max())}. Join it with the family of the new data."
            )
        levels = torch.tensor(self.levels, dtype=x.dtype, device=x.device).reshape(-1, *[1] * x.dim())
        return torch.cat([(x >= levels).to(x.dtype), x.unsqueeze(0)])

    def base_measure(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x + 1)

    def coefficients(self, *, total_count: Tensor, probs: Tensor) -> Tensor:
        probs = clamp_probs(probs)  # as torch's own density has it
        r, p = (part.unsqueeze(-1) for part in torch.broadcast_tensors(total_count, probs))
        return torch.cat([_log_rises(r, self.levels), log_or_never(p), r * torch.log1p(-p)], -1)

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


FEW = 32  # terms log(r + j) that are added up as they are; beyond, Stirling's series is exact


def _log_rises(r: Tensor, levels: tuple[int, ...]) -> Tensor:
    """log Gamma(r + b) - log Gamma(r + a) for neighbours a < b among zero and the levels: from (..., 1) to (..., L)."""
    counts = torch.arange(min(FEW, levels[-1] if levels else 0), dtype=torch.long)
    ends = torch.tensor(levels, dtype=torch.long)
    which = torch.bucketize(counts, ends, right=True)
    terms = log_or_never(r + counts.to(r.dtype))
    rises = r.new_zeros(*r.shape[:-1], len(levels)).index_add(-1, which, terms)
    if not levels or levels[-1] <= FEW:
        return rises
    ends = ends.clamp_min(FEW).to(r.dtype)
    starts = torch.cat([ends.new_full((1,), FEW), ends[:-1]])
    return rises + log_rise(r + starts, ends - starts)
