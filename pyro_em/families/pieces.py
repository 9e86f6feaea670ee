"""Solutions of families for data that are never in memory all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from pyro_em.families.base import Cells, Family

__all__ = ["in_pieces"]


@dataclass(frozen=True)
class _Heard(Cells):
    """Cells of one piece, which note what is pooled."""

    sums: list[Tensor] = field(default_factory=list)

    def pool(self, values: Tensor) -> Tensor:
        self.sums.append(super().pool(values))
        return self.sums[-1]


@dataclass(frozen=True)
class _Told(Cells):
    """Cells that answer with what was pooled over all pieces."""

    sums: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    def pool(self, values: Tensor) -> Tensor:
        return next(self.sums)


Solution = Callable[[Family, Cells], Tensor | None]


def in_pieces(solution: Solution, pieces: Iterable[tuple[Family, Cells]]) -> Tensor | None:
    """What the solution gives for the cells of all pieces together, one of them in memory at a time.

    A solution is a function of pools over its cells, and pools of pieces add up: it is found once for each piece, and
    once more from the totals.

    Args:
        pieces: each with the family of its data; their groups are the same.
    """
    totals: list[Tensor] = []
    for family, cells in pieces:
        heard = _Heard(cells.stats, cells.args, cells.group, cells.size)
        if solution(family, heard) is None:
            return None
        totals = [a + b for a, b in zip(totals, heard.sums, strict=True)] if totals else heard.sums
        last = family, cells
    family, cells = last
    return solution(family, _Told(cells.stats, cells.args, cells.group, cells.size, None, iter(totals)))
