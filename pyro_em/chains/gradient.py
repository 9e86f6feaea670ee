"""The log evidence of chains as a differentiable function: its gradient is the posterior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_em.chains.passes import backward, forward
from pyro_em.chains.tables import ChainTables, Filtered

__all__ = ["log_evidence"]


def log_evidence(emission: Tensor, transition: Tensor, which: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Log of the sum over all paths, shape (R,), differentiable once in `emission` and `transition`.

        d log p(x_r) / d emission = p(z_t | x_r),   d log p(x_r) / d transition = p(z_t, z_{t+1} | x_r), summed

    Args:
        emission, transition, which, lengths: as in :class:`~pyro_em.chains.ChainTables`.

    Raises:
        RuntimeError: where the gradient is differentiated in turn.

    The gradient of an impossible row is zero.
    """
    return _LogEvidence.apply(emission, transition, which, lengths)


class _LogEvidence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, emission: Tensor, transition: Tensor, which: Tensor, lengths: Tensor | None) -> Tensor:
        filtered = forward(ChainTables(emission, transition, which, lengths))
        ctx.save_for_backward(emission, transition)
        ctx.filtered = filtered
        return filtered.log_evidence.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        emission, transition = ctx.saved_tensors
        return (*_Posterior.apply(emission, transition, grads[0], ctx.filtered), None, None)


class _Posterior(torch.autograd.Function):
    """A node of its own in the graph: under create_graph=True a gradient without one would pass for a constant."""

    @staticmethod
    def forward(
        ctx: Any, emission: Tensor, transition: Tensor, weights: Tensor, filtered: Filtered
    ) -> tuple[Tensor, Tensor]:
        smoothed = backward(filtered, weights)
        return smoothed.marginal, smoothed.pairwise

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "The log evidence of a chain can be differentiated once; a second derivative was asked for. Take it by "
            "finite differences of the gradient."
        )
