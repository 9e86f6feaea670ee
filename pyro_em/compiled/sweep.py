"""All data of a mixture in one compiled pass, shared out among threads, where that is faster than matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_em.chains.threads import spread
from pyro_em.compiled.desk import Desk
from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.flat import Flat
from pyro_em.compiled.mixture_kernel import add_rows
from pyro_em.families import Family
from pyro_em.families.bernoulli import Bernoulli
from pyro_em.families.exponential import Exponential, Geometric
from pyro_em.families.normal import Normal
from pyro_em.families.poisson import Poisson

__all__ = ["Sweep"]

KEEP = 2**22  # bytes of features that are kept instead of being made anew
# Multiplications for each thread. After the logarithm of a vector torch's own threads stay on their processors for some
# milliseconds: a pass of ten is not faster for a second thread that waits for one of these.
LEAST_WORK = 100_000_000
MOST_ENTRIES = {torch.float64: 512, torch.float32: 48}  # of the coefficients: beyond, matrix products are faster
# Families whose features T(x) are the first so many powers of x.
POWERS: dict[type[Family], int] = {Normal: 2, Bernoulli: 1, Exponential: 1, Geometric: 1, Poisson: 1}


@dataclass(frozen=True, eq=False)
class Sweep:
    """What the pass reads.

    Attributes:
        data: shape (n, D): the data themselves, or features that are kept.
        origin: what is taken off them, shape (D,).
        powers: features are the first so many powers of what is left: one or two.
    """

    data: Tensor
    origin: Tensor
    powers: int

    @classmethod
    def of(cls, flat: Flat, num_rows: int) -> Sweep | None:
        """Over all rows of some factors; ``None`` where matrix products of blocks are better."""
        if not flat.factors or flat.width * flat.factors[0].num_states > MOST_ENTRIES[flat.dtype]:
            return None
        if len(flat.factors) == 1 and (own := cls._of_data(flat.factors[0], flat.dtype)) is not None:
            return own
        if flat.width * num_rows * flat.dtype.itemsize > KEEP:
            return None
        features = flat.features(slice(0, num_rows), Desk(flat.dtype)).contiguous()
        return cls(features, torch.zeros(flat.width, dtype=torch.float64), 1)

    @classmethod
    def _of_data(cls, factor: TensorFactor, dtype: torch.dtype) -> Sweep | None:
        """Without features that take memory, where these are powers of the data."""
        powers, x = POWERS.get(type(factor.book.family)), factor.x[:, 0]
        if powers is None or factor.mask is not None or x.dtype != dtype or not x.is_contiguous():
            return None
        origin = torch.zeros(x.shape[1]) if factor.origin is None else factor.origin
        return cls(x, origin.to(torch.float64).contiguous(), powers)

    def add(self, matrix: Tensor, offset: Tensor, weights: Tensor, sums: Tensor, counts: Tensor) -> tuple[float, float]:
        """Add expected features (K, F) and counts (K,) in place; the log evidence and its squared terms.

        Args:
            matrix, offset: coefficients, shapes (K, F) and (K,), float64.
            weights: of the rows, or one of all.
        """
        read = self.data.numpy(), self.origin.numpy(), self.powers
        given = matrix.contiguous().numpy(), offset.contiguous().numpy(), weights.numpy()

        def run(first: int, last: int) -> tuple[np.ndarray, np.ndarray, float, float]:
            own = np.zeros(tuple(matrix.shape)), np.zeros(len(matrix))
            return (*own, *add_rows(*read, first, last, *given, *own))

        parts = spread(len(self.data), 2 * len(self.data) * matrix.numel(), run, LEAST_WORK)
        for own, count, _, _ in parts:
            sums += torch.from_numpy(own)
            counts += torch.from_numpy(count)
        return sum(p[2] for p in parts), sum(p[3] for p in parts)
