"""Categories of probability zero, or next to it, which torch makes likelier than they are.

torch clamps the ``probs`` of a ``Categorical`` to the smallest step of their dtype, so that an impossible state costs
16 nats in float32 and 36 in float64, which data can outweigh. Zeros that a fit arrives at are only next to zero in
unconstrained coordinates, so what lies between counts as it is. The families of single probabilities (``Bernoulli``,
``Binomial``, ``Geometric``, ``NegativeBinomial``) are left as torch has them, in the program and in its tensors alike.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution

__all__ = ["with_true_zeros"]


def with_true_zeros(fn: Any) -> Any:
    """A distribution over categories whose log-probabilities are those of its ``probs``; any other as it is."""
    if isinstance(fn, dist.Independent | MaskedDistribution | ExpandedDistribution):
        base = with_true_zeros(fn.base_dist)
        return fn if base is fn.base_dist else _wrapped(fn, base)
    if not isinstance(fn, dist.Categorical | dist.OneHotCategorical | dist.Multinomial):
        return fn
    table = fn if isinstance(fn, dist.Categorical) else fn._categorical
    probs = vars(table).get("probs")
    if probs is None or not bool((probs < torch.finfo(probs.dtype).eps).any()):
        return fn
    possible = probs >= torch.finfo(probs.dtype).tiny  # below, the gradient of a logarithm overflows
    logits = torch.where(possible, torch.where(possible, probs, 1.0).log(), -torch.inf)
    if isinstance(fn, dist.Multinomial):
        return dist.Multinomial(fn.total_count, logits=logits, validate_args=False)
    return type(fn)(logits=logits, validate_args=False)


def _wrapped(fn: Any, base: Any) -> Any:
    """Another distribution in the place of the one that this wraps."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(base, fn.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(fn, MaskedDistribution):
        return MaskedDistribution(base, fn._mask)
    return ExpandedDistribution(base, fn.batch_shape)
