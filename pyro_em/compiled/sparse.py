"""Counts that are mostly zero: data in compressed rows (CSR), multiplied as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
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
    blocks: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

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

    def block(self, rows: slice) -> tuple[Tensor, Tensor]:
        """A range of rows and its transpose, both CSR, made once."""
        start, stop, _ = rows.indices(self.num_rows)
        if (start, stop) not in self.blocks:
            part = self.x if stop - start == self.num_rows else _rows(self.x, start, stop)
            turned = part.to_sparse_coo().t().coalesce().to_sparse_csr()
            self.blocks[start, stop] = part, turned
        return self.blocks[start, stop]

    def table(self, coefficients: Tensor, rows: slice) -> Tensor:
        """Log-densities without the base measure, shape (n, K)."""
        own = coefficients[self.cell[0, :, 0]].expand(self.num_states, -1)
        return self.block(rows)[0] @ own[:, :-1].T.contiguous() + own[:, -1]

    def add_stats(self, weights: Tensor, stats: Tensor, rows: slice) -> None:
        """Add expected counts, in place; ``weights`` has shape (n, K)."""
        sums = (self.block(rows)[1] @ weights.contiguous()).T
        values = torch.cat([sums, weights.sum(0).unsqueeze(1)], 1)
        stats.index_add_(0, self.cell[0, :, 0].expand(self.num_states), values)

    @cached_property
    def row_base(self) -> Tensor:
        """The base measure of each row."""
        logs = torch.sparse_csr_tensor(
            self.x.crow_indices(),
            self.x.col_indices(),
            torch.lgamma(self.x.values() + 1),
            self.x.shape,
            check_invariants=False,
        )
        ones = torch.ones(self.x.shape[1], 1, dtype=torch.float64)
        return (torch.lgamma((self.x @ ones) + 1) - logs @ ones).squeeze(1)


def sparse_factor(parts: SiteParts, book: Book) -> SparseFactor:
    """A site of counts in compressed rows.

    Raises:
        ModelError: it is not a mixture of multinomials over one plate, or it is masked.
    """
    plates = tuple(p for v in parts.scope for p in v.plates)
    cell = book.maps[parts.name]
    plain = isinstance(book.family, OneHotCategorical) and parts.mask is None and len(parts.scope) == 1
    if not plain or plates != parts.plates or len(plates) != 1 or parts.events or cell.shape[0] > 1:
        raise ModelError(
            f"Site {parts.name!r} observes sparse data. They are taken for a Multinomial in one plate, with one latent "
            "in that plate, and no mask. Use .to_dense() elsewhere."
        )
    return SparseFactor(parts.name, book, plates, parts.scope, parts.data.to(torch.float64), cell.reshape(1, -1, 1))


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    crow = x.crow_indices()[start : stop + 1]
    part = slice(int(crow[0]), int(crow[-1]))
    shape = (stop - start, x.shape[1])
    return torch.sparse_csr_tensor(
        crow - crow[0], x.col_indices()[part], x.values()[part], shape, check_invariants=False
    )
