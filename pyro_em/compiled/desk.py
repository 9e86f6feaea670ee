"""Features of blocks of rows, written into the same memory block after block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_em.compiled.factor import TensorFactor

__all__ = ["Desk"]


@dataclass
class Desk:
    """Room for one block at a time: fresh memory for each would cost as much as the arithmetic.

    Attributes:
        dtype: of the features.
    """

    dtype: torch.dtype
    _room: dict[tuple[int, str], Tensor] = field(default_factory=dict, repr=False)

    def features(self, factor: TensorFactor, rows: slice) -> Tensor:
        """A dense factor's features, row by row, shape (rows, S * E), with its mask behind; valid until the next call.

        Where features are the data themselves, so is the result.
        """
        x = self._centred(factor, factor.x[rows, 0])
        family = factor.book.family
        x = x.permute([*range(2, x.dim()), 0, 1])
        n, elements = x.shape[-2:]
        if hasattr(family, "fill"):
            flat = self._space(factor, "features", (n, factor.num_features, elements))
            family.fill(x, flat.transpose(0, 1))
        else:
            flat = family.features(x).transpose(0, 1)
        if factor.mask is None:
            return flat.reshape(n, -1)
        mask = factor.part(factor.mask, rows)[:, 0].to(self.dtype)
        return torch.cat([(flat * mask.unsqueeze(1)).reshape(n, -1), mask.expand(n, -1)], 1)

    def _centred(self, factor: TensorFactor, x: Tensor) -> Tensor:
        if factor.origin is None or factor.mask is not None or x.dtype != self.dtype:
            return factor.centred(x, self.dtype)
        room = self._space(factor, "centred", tuple(x.shape))
        return torch.sub(x, factor.origin.to(self.dtype), out=room)

    def _space(self, factor: TensorFactor, use: str, shape: tuple[int, ...]) -> Tensor:
        """Memory of this shape, the same as last time where that is large enough."""
        held = self._room.get((id(factor), use))
        size = torch.Size(shape).numel()
        if held is None or held.numel() < size:
            held = self._room[id(factor), use] = torch.empty(size, dtype=self.dtype)
        return held[:size].reshape(shape)
