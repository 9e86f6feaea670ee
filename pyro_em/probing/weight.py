"""Rows that do not count: whatever their values are, they set neither a centre nor a unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyro_em.probing.sites import SiteParts

__all__ = ["of_weight"]


def of_weight(parts: SiteParts, weights: Mapping[str, Tensor]) -> SiteParts:
    """An observation with elements of weight zero masked out.

    Args:
        weights: by plate, shape (size of the plate,).
    """
    if parts.own is not None or parts.data.layout is not torch.strided:
        return parts
    mask = parts.mask
    for axis, plate in enumerate(parts.plates):
        counts = weights[plate.name] > 0 if plate.name in weights else None
        if counts is not None and not bool(counts.all()):
            counts = counts.reshape([-1 if i == axis else 1 for i in range(len(parts.dims) + parts.events)])
            mask = counts if mask is None else mask & counts
    return replace(parts, mask=mask)
