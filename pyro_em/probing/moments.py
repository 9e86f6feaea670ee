"""Means and variances of the data that count, element by element; of batches, they add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.probing.sites import SiteParts

__all__ = ["Moments", "moments_of"]

SAMPLE = 4096  # rows that moments are taken over: they set a centre and a unit


@dataclass(frozen=True)
class Moments:
    """Of some data, missing entries left out.

    Attributes:
        count: how many there are.
        mean: zero where there is none.
        squares: sums of squared deviations from the mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, data: Tensor, axes: Sequence[int], keepdim: bool = False) -> Moments:
        """Over some axes of data, kept with size one or not, in which NaN and infinity stand for what is missing."""
        data = data.detach().to(torch.float64)
        seen = torch.isfinite(data)
        data = torch.where(seen, data, 0.0)
        if not axes:
            return cls(seen.to(torch.float64), data, torch.zeros_like(data))
        count = seen.sum(list(axes), keepdim=True).to(torch.float64)
        mean = data.sum(list(axes), keepdim=True) / count.clamp_min(1)
        squares = torch.where(seen, data - mean, 0.0).square().sum(list(axes), keepdim=True)
        kept = [1 if i in axes else size for i, size in enumerate(data.shape) if keepdim or i not in axes]
        return cls(count.reshape(kept), mean.reshape(kept), squares.reshape(kept))

    def __add__(self, other: Moments) -> Moments:
        """Of both together (Chan, Golub & LeVeque 1983, equation 2.1)."""
        count = self.count + other.count
        apart, share = other.mean - self.mean, other.count / count.clamp_min(1)
        squares = self.squares + other.squares + apart.square() * self.count * share
        return Moments(count, self.mean + apart * share, squares)

    @property
    def variance(self) -> Tensor:
        """About the mean; of constant data, what rounding leaves."""
        return (self.squares / self.count.clamp_min(1)).maximum((1e-8 * self.mean).square())


def moments_of(parts: SiteParts) -> Moments:
    """Of a site's data over all but its event axes, shape (*events, *event)."""
    data, mask = _sampled(parts.data, parts), parts.mask
    if mask is not None:
        states = range(len(parts.plates), len(parts.dims))
        mask = _sampled(mask, parts)
        for axis in states:
            mask = mask.any(axis, keepdim=True)
        rank = parts.family.rank
        data = torch.where(mask.reshape(*mask.shape, *[1] * rank), data.to(torch.float64), torch.nan)
    return Moments.of(data, range(len(parts.dims)))


def _sampled(tensor: Tensor, parts: SiteParts) -> Tensor:
    """Some rows of many, the same of all tensors."""
    for axis, dim in enumerate(parts.dims):
        step = max(1, dim.size // SAMPLE)
        if tensor.shape[axis] > 1:
            tensor = tensor[(slice(None),) * axis + (slice(None, None, step),)]
    return tensor
