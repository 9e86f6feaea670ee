"""Counts that are mostly zero: data in compressed rows (CSR), multiplied as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
from pyro_em.compiled.sparse_kernel import add_transposed, multiply_rows
from pyro_em.errors import ModelError
from pyro_em.families.categorical import OneHotCategorical
from pyro_em.graph import Plate, Variable
from pyro_em.probing import SiteParts, Stack

__all__ = ["SparseFactor", "sparse_factor"]


@dataclass(frozen=True, eq=False)
class SparseFactor:
    """A site of counts whose data are one sparse matrix; attributes as in
    :class:`~pyro_em.compiled.factor.TensorFactor`.

    Attributes:
        x: CSR, shape (n, V), float64.
        cell: shape (1, K or 1, 1).
    """

    name: str
    book: Book
    plates: tuple[Plate, ...]
    scope: tuple[Variable, ...]
    x: Tensor
    cell: Tensor
    own: Variable | None = None
    active: Tensor | None = None
    mask: Tensor | None = None
    multiplicity: Tensor | None = None
    stack: Stack | None = None

    is_dense = False
    is_constant = False
    is_augmented = False

    @property
    def num_rows(self) -> int:
        """Number of rows n."""
        return prod(p.size for p in self.plates)

    @property
    def num_states(self) -> int:
        """Number of states K."""
        return prod(v.size for v in self.scope)

    @cached_property
    def _arrays(self) -> tuple[Any, Any, Any]:
        """Where each row starts, the column of each entry, and the entry."""
        return self.x.crow_indices().numpy(), self.x.col_indices().numpy(), self.x.values().numpy()

    def table(self, coefficients: Tensor, rows: slice) -> Tensor:
        """Log-densities without the base measure, shape (n, K)."""
        own = coefficients[self.cell[0, :, 0]].expand(self.num_states, -1)
        first, stop, _ = rows.indices(self.num_rows)
        out = torch.empty(stop - first, self.num_states, dtype=torch.float64)
        parts = own[:, :-1].T.contiguous(), own[:, -1].contiguous(), out
        multiply_rows(first, *self._arrays, *(t.numpy() for t in parts))
        return out

    def add_stats(self, weights: Tensor, stats: Tensor, rows: slice) -> None:
        """Add expected counts, in place; ``weights`` has shape (n, K)."""
        sums = torch.zeros(self.x.shape[1], self.num_states, dtype=torch.float64)
        add_transposed(rows.indices(self.num_rows)[0], *self._arrays, weights.contiguous().numpy(), sums.numpy())
        values = torch.cat([sums.T, weights.sum(0).unsqueeze(1)], 1)
        stats.index_add_(0, self.cell[0, :, 0].expand(self.num_states), values)

    @cached_property
    def row_base(self) -> Tensor:
        """The base measure of each row."""
        counts, starts = self.x.values(), self.x.crow_indices()
        row = torch.repeat_interleave(torch.arange(self.num_rows), starts.diff())
        several = (counts * counts != counts).nonzero().squeeze(1)  # log 0! = log 1! = 0
        totals = torch.zeros(self.num_rows, dtype=torch.float64).index_add_(0, row, counts)
        return torch.lgamma(totals + 1).index_add_(0, row[several], -torch.lgamma(counts[several] + 1))


def sparse_factor(parts: SiteParts, book: Book, cell: Tensor) -> SparseFactor:
    """A site of counts in compressed rows, and which cell each of its elements uses.

    Raises:
        ModelError: it is not a mixture of multinomials over one plate, or it is masked.
    """
    plates = tuple(p for v in parts.scope for p in v.plates)
    plain = isinstance(book.family, OneHotCategorical) and parts.mask is None and len(parts.scope) == 1
    if not plain or plates != parts.plates or len(plates) != 1 or parts.events or cell.shape[0] > 1:
        raise ModelError(
            f"Site {parts.name!r} observes sparse data. They are taken for a Multinomial in one plate, with one latent "
            "in that plate, and no mask. Use .to_dense() elsewhere."
        )
    columns = parts.data.col_indices()
    if columns.numel() and not (int(columns.min()) >= 0 and int(columns.max()) < parts.data.shape[1]):
        raise ModelError(  # memory is read by these numbers, unchecked
            f"Site {parts.name!r} observes sparse data of {parts.data.shape[1]} columns with indices from "
            f"{int(columns.min())} to {int(columns.max())}. Build it with check_invariants=True to see where."
        )
    return SparseFactor(parts.name, book, plates, parts.scope, parts.data.to(torch.float64), cell.reshape(1, -1, 1))
