"""Bernoulli and Binomial: T(x) = x, beside the number of trials for the latter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import clamp_probs

from pyro_em.families.base import Argument, Cells, Family

__all__ = ["Bernoulli", "Binomial"]


@dataclass(frozen=True)
class Bernoulli:
    """Bernoulli(probs): the probability is the mean. Conjugate: Beta."""

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
        probs = clamp_probs(probs)  # as torch's own density has it
        other = torch.log1p(-probs)
        return torch.stack([probs.log() - other, other], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        x, n = cells.pool(cells.stats).unbind(-1)
        return _proportion(x, n, cells.pseudo)

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        return _beta_counts(link, prior)


@dataclass(frozen=True)
class Binomial:
    """Binomial(total_count, probs) with known counts of trials. Conjugate: Beta.

    One datum is the pair (x, number of trials).
    """

    args: ClassVar[tuple[Argument, ...]] = (Argument("probs", domain=constraints.unit_interval),)
    rank: ClassVar[int] = 1

    @classmethod
    def of(cls, fn: Any, value: Tensor) -> Family:
        return cls()

    def join(self, other: Family) -> Family:
        return self

    def arguments(self, fn: Any) -> dict[str, Tensor]:
        return {"probs": fn.probs}

    def data(self, fn: Any, value: Tensor) -> Tensor:
        total = torch.as_tensor(fn.total_count).to(value)
        while total.dim() > value.dim() and total.shape[0] == 1:
            total = total.squeeze(0)
        return torch.stack(torch.broadcast_tensors(value, total), -1)

    def features(self, x: Tensor) -> Tensor:
        return x

    def base_measure(self, x: Tensor) -> Tensor:
        return torch.lgamma(x[1] + 1) - torch.lgamma(x[0] + 1) - torch.lgamma(x[1] - x[0] + 1)

    def coefficients(self, *, probs: Tensor) -> Tensor:
        probs = clamp_probs(probs)
        other = torch.log1p(-probs)
        return torch.stack([probs.log() - other, other, torch.zeros_like(other)], -1)

    def solve(self, name: str, cells: Cells) -> Tensor | None:
        x, trials, _ = cells.pool(cells.stats).unbind(-1)
        return _proportion(x, trials, cells.pseudo)

    def pseudo(self, name: str, link: str, prior: Any) -> Tensor | None:
        return _beta_counts(link, prior)


def _proportion(x: Tensor, n: Tensor, pseudo: Tensor | None) -> Tensor:
    if pseudo is not None:
        x, n = x + pseudo[:, 0], n + pseudo[:, 1]
    return (x / n).clamp(0.0, 1.0)


def _beta_counts(link: str, prior: Any) -> Tensor | None:
    if type(prior).__name__ != "Beta" or link != "identity":
        return None
    return torch.stack([prior.concentration1 - 1, prior.concentration1 + prior.concentration0 - 2], -1)
