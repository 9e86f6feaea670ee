"""log sum exp that is right where everything is impossible, in value and in gradient."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["logsumexp"]


def logsumexp(table: Tensor) -> Tensor:
    """log sum exp over the last axis; an axis of -inf gives -inf, and zero gradient rather than NaN."""
    top = table.detach().amax(-1, keepdim=True)
    top = torch.where(torch.isfinite(top), top, 0.0)
    total = (table - top).exp().sum(-1)
    possible = total > 0
    return torch.where(possible, torch.where(possible, total, 1.0).log() + top.squeeze(-1), -torch.inf)
