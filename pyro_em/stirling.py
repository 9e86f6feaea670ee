"""Ratios of Gamma functions whose arguments are large and close, where differences of ``lgamma`` lose all digits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["log_rise"]


def log_rise(z: Tensor, d: Tensor) -> Tensor:
    """log Gamma(z + d) - log Gamma(z) for z of at least 32, by Stirling's series to z^-7, which is exact in float64
    there; no digit is lost where d is small beside z.

    Source: NIST Digital Library of Mathematical Functions, 5.11.1.
    """
    return (z - 0.5) * torch.log1p(d / z) + d * (torch.log(z + d) - 1) + _rest(z + d) - _rest(z)


def _rest(z: Tensor) -> Tensor:
    q = z.pow(-2)
    return (1 / 12 - q * (1 / 360 - q * (1 / 1260 - q / 1680))) / z
