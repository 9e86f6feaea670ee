"""Densities at the edge of their arguments, where torch's are not what a model says, or have a gradient of NaN.

torch clamps the ``probs`` of a ``Categorical`` to the smallest step of their dtype, so that an impossible state costs
16 nats in float32 and 36 in float64, which data can outweigh. Zeros that a fit arrives at are only next to zero in
unconstrained coordinates, so what lies between counts as it is. The families of single probabilities (``Bernoulli``,
``Binomial``, ``Geometric``, ``NegativeBinomial``) are left as torch has them, in the program and in its tensors alike.

A rate of exactly zero, ``(1 - absent) * rate``, has the right density, and the gradient of its logarithm, 0 / 0 or zero
times infinity, would be NaN in all that the rate was computed from, though no parameter acts there.

Negative binomial counts near their Poisson limit are differences of numbers that grow with the total count: beyond
1e13 nothing is left of them, a climb toward the limit takes what is left for gains, and ends at a density of one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions.utils import probs_to_logits
from torch.nn.functional import logsigmoid

from pyro_em.graph.multinomial import Counted, without_repeats
from pyro_em.stirling import log_rise

__all__ = ["with_true_zeros"]


def with_true_zeros(fn: Any) -> Any:
    """The distribution with the densities of its ``probs``, ``rate`` or total count, at the edges too; any other as it
    is.
    """
    if isinstance(fn, dist.Independent | MaskedDistribution | ExpandedDistribution):
        base = with_true_zeros(fn.base_dist)
        return fn if base is fn.base_dist else _wrapped(fn, base)
    if type(fn) in _RATES:
        return _RATES[type(fn)](fn.rate, validate_args=False) if bool((fn.rate == 0).any()) else fn
    if type(fn) in _TOTALS:
        name, kind = _TOTALS[type(fn)]
        total = getattr(fn, name)
        return kind(fn) if bool((total > _many(total)).any()) else fn
    if not isinstance(fn, dist.Categorical | dist.OneHotCategorical | dist.Multinomial):
        return fn
    table = fn if isinstance(fn, dist.Categorical) else fn._categorical
    given = vars(table).get("probs")
    probs = None if given is None else without_repeats(given)
    if probs is None or not bool((probs < torch.finfo(probs.dtype).eps).any()):
        return Counted(fn, _own_logits(table)) if type(fn) is dist.Multinomial else fn
    probs = probs if isinstance(fn, dist.Multinomial) else given
    possible = probs >= torch.finfo(probs.dtype).tiny  # below, the gradient of a logarithm overflows
    logits = torch.where(possible, torch.where(possible, probs, 1.0).log(), -torch.inf)
    return Counted(fn, logits) if isinstance(fn, dist.Multinomial) else type(fn)(logits=logits, validate_args=False)


def _own_logits(table: Any) -> Tensor:
    """torch's, of those batch elements that differ."""
    logits = vars(table).get("logits")
    return probs_to_logits(without_repeats(table.probs)) if logits is None else without_repeats(logits)


class _Counts(dist.Poisson):
    """Poisson counts, certainly zero where the rate is."""

    def log_prob(self, value: Tensor) -> Tensor:
        certain = self.rate == 0
        counts = dist.Poisson(torch.where(certain, 1.0, self.rate), validate_args=False).log_prob(value)
        return torch.where(certain, torch.where(value == 0, 0.0, -torch.inf).to(counts), counts)


class _Waits(dist.Exponential):
    """Exponential waits, without end where the rate is zero."""

    def log_prob(self, value: Tensor) -> Tensor:
        endless = self.rate == 0
        waits = dist.Exponential(torch.where(endless, 1.0, self.rate), validate_args=False).log_prob(value)
        return torch.where(endless, -torch.inf, waits)


def _mixed_counts(fn: dist.GammaPoisson) -> _NearPoisson:
    return _NearPoisson(fn, fn.concentration, -torch.log1p(1 / fn.rate), -torch.log1p(fn.rate))


def _repeated_trials(fn: dist.NegativeBinomial) -> _NearPoisson:
    return _NearPoisson(fn, fn.total_count, logsigmoid(-fn.logits), logsigmoid(fn.logits))


class _NearPoisson(dist.TorchDistribution):
    """Negative binomial counts, by the logs of the probabilities of a failure and of a success."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.nonnegative_integer

    def __init__(self, fn: Any, total: Tensor, failure: Tensor, success: Tensor) -> None:
        self.fn, self.total, self.failure, self.success = fn, total, failure, success
        super().__init__(fn.batch_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        many, x = self.total > _many(self.total), value.to(self.total.dtype)
        total = torch.where(many, self.total, _many(self.total))
        near: Tensor = log_rise(total, x) - torch.lgamma(x + 1) + total * self.failure + x * self.success
        return torch.where(many, near, self.fn.log_prob(value))


def _many(total: Tensor) -> float:
    """A total count from which differences of ``lgamma`` lack half of their digits: 2e6 in float64, 6e2 in float32."""
    return float(torch.finfo(total.dtype).eps ** -0.4)


_TOTALS: dict[type, tuple[str, Any]] = {
    dist.GammaPoisson: ("concentration", _mixed_counts),
    dist.NegativeBinomial: ("total_count", _repeated_trials),
}
_RATES: dict[type, type] = {dist.Poisson: _Counts, dist.Exponential: _Waits}


def _wrapped(fn: Any, base: Any) -> Any:
    """Another distribution in the place of the one that this wraps."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(base, fn.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(fn, MaskedDistribution):
        return MaskedDistribution(base, fn._mask)
    return ExpandedDistribution(base, fn.batch_shape)
