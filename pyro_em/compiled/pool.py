"""The elements of all sites that share an argument, and which of its values each uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.pieces import Piece
from pyro_em.families import Cells, Family

__all__ = ["Pool", "pooled", "shape_of"]


@dataclass(frozen=True)
class Pool:
    """The elements of all sites that share an argument.

    Attributes:
        values: positions in theta of each value of the argument, shape (G, block).
        group: which of them each element uses, shape (C,).
        args: all arguments of each element.
        present: each value at theta.
    """

    members: list[ElementFactor]
    values: Tensor
    group: Tensor
    args: dict[str, Tensor]
    present: Tensor

    @property
    def family(self) -> Family:
        """That of the members."""
        return self.members[0].family

    def cells(self, piece: Piece) -> Cells:
        """The elements, each a cell of its own."""
        stats = torch.cat([piece.stats[f.name].flatten(0, -2) for f in self.members])
        return Cells(stats, self.args, self.group, len(self.values))


def pooled(members: list[ElementFactor], name: str, theta: Tensor) -> Pool:
    """The elements of sites whose argument ``name`` is a selection, at theta."""
    rows, args = [], []
    for f in members:
        index = f.routes[name].index
        assert index is not None
        shape, block = shape_of(f), index.shape[3:]
        rows.append(index.expand(*shape, *block).reshape(-1, *block))
        here = f.args(theta, slice(None))
        args.append({n: a.expand(*shape, *a.shape[3:]).reshape(-1, *a.shape[3:]) for n, a in here.items()})
    flat = torch.cat([r.flatten(1) if r.dim() > 1 else r.unsqueeze(1) for r in rows])
    values, group = _distinct(flat)
    together = {n: torch.cat([a[n] for a in args]) for n in args[0]}
    present = together[name].new_zeros(len(values), *together[name].shape[1:])
    present[group] = together[name]
    return Pool(members, values, group, together, present)


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of integers in order, and which of them each row is: ``unique(dim=0)`` sorts all rows, where
    blocks of parameters differ in their first element.
    """
    first = rows[:, 0] - rows[:, 0].min()
    sample = torch.zeros(int(first.max()) + 1, dtype=torch.long).index_copy_(0, first, torch.arange(len(rows)))
    if not torch.equal(rows[sample[first]], rows):
        values, group = rows.unique(dim=0, return_inverse=True)
        return values, group
    known = torch.zeros(len(sample), dtype=torch.bool).index_fill_(0, first, True)
    return rows[sample[known]], (known.cumsum(0) - 1)[first]


def shape_of(factor: ElementFactor) -> tuple[int, int, int]:
    """Numbers of rows, states and elements of a site."""
    return factor.num_rows, factor.num_states, factor.x.shape[2]
