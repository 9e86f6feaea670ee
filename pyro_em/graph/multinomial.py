"""Densities of multinomial counts in all states at once.

torch broadcasts data and log probabilities to one entry for each datum, state and category, and takes the factorials of
the data anew in every state. Here they are taken once, and the rest is a matrix product.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

__all__ = ["Counted", "without_repeats"]


class Counted(dist.TorchDistribution):
    """The density of a ``Multinomial`` at these logits, -inf included.

    Args:
        fn: the distribution; a parameter's own validation applies.
        logits: normalised, shape (*batch, V), of size one where batch dimensions repeat.
    """

    def __init__(self, fn: dist.Multinomial, logits: Tensor) -> None:
        self._fn, self._logits = fn, logits
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log n! - sum_v log x_v! + sum_v x_v log p_v, where nothing times -inf is nothing; shape (*batch,)."""
        if self._fn._validate_args:
            self._fn._validate_sample(value)
        dtype = torch.promote_types(value.dtype, self._logits.dtype)
        never = self._logits == -torch.inf
        powers = torch.einsum("...v,...v->...", value.to(dtype), self._logits.masked_fill(never, 0.0).to(dtype))
        if bool(never.any()):
            forbidden = torch.einsum("...v,...v->...", (value != 0).to(dtype), never.to(dtype))
            powers = powers.masked_fill(forbidden > 0, -torch.inf)
        total = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1) + powers
        return total.expand(broadcast_shape(total.shape, self.batch_shape))


def without_repeats(t: Tensor) -> Tensor:
    """One entry along batch dimensions that an expansion repeats; the last dimension as it is."""
    for axis in range(t.dim() - 1):
        if t.shape[axis] > 1 and t.stride(axis) == 0:
            t = t.narrow(axis, 0, 1)
    return t
