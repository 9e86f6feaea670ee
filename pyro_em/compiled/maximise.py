"""The M-step on statistics: every parameter by its owner, in turn, so that Q never falls (ECM; Meng & Rubin 1993)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
from pyro_em.compiled.collapse import at_floor, refuse, too_narrow
from pyro_em.compiled.numeric import climb, expected
from pyro_em.compiled.ownership import Block, Ownership
from pyro_em.compiled.pieces import Pieces
from pyro_em.compiled.point import Point, Values
from pyro_em.compiled.priors import Prior
from pyro_em.compiled.regression import Regressions
from pyro_em.compiled.sharp import CEILING, SHARP, concentrations
from pyro_em.compiled.solve import Guard, Solver, is_closed, solver_of
from pyro_em.compiled.still import is_still
from pyro_em.families.newton import NEGLIGIBLE
from pyro_em.probing import LINKS, Coordinates

__all__ = ["Maximiser", "Moved"]

ROUNDS = 30
STILL = 1e-11


@dataclass(frozen=True)
class Moved:
    """Where an M-step ends.

    Attributes:
        theta: the parameters.
        values: what the books make of them, where that is known.
    """

    theta: Tensor
    values: Values | None = None


@dataclass(frozen=True)
class Maximiser:
    """Raises Q over the parameters that statistics decide.

    Attributes:
        books, coordinates: of the model.
        priors: those that count.
        ownership: who owns what.
        guard: what to do about components that collapse.
        regressions: for sites by element; ``None`` without any.
    """

    books: tuple[Book, ...]
    coordinates: Coordinates
    priors: Mapping[str, Prior]
    ownership: Ownership
    guard: Guard
    regressions: Regressions | None = None

    def maximise(self, theta: Tensor, stats: tuple[Tensor, ...], pieces: Pieces, point: Point | None = None) -> Moved:
        """Every owned parameter to the maximum of Q given the rest.

        Args:
            stats: expected features and counts of each book's cells.
            pieces: sites by element, with posteriors of their states.
            point: what the books make of theta, where that is known.

        Raises:
            DegenerateError: a component collapsed, under a guard that does not floor.
        """
        if self.regressions is not None:
            theta = self.regressions.maximise(theta, pieces, self.guard)
        for _ in range(ROUNDS):
            before = theta
            moved = self._solve(theta, stats, point)
            if not self.ownership.numeric:
                return moved
            free = self.ownership.numeric
            priors = {n: p for n, p in self.priors.items() if n in free}
            q = partial(expected, self.books, self.coordinates, priors, stats)
            theta = climb(q, self.coordinates, moved.theta, free)
            self._refuse_collapsed(theta, stats)
            if not self.ownership.blocks or is_still(theta, before, STILL):
                break
        return Moved(theta)

    def _refuse_collapsed(self, theta: Tensor, stats: tuple[Tensor, ...]) -> None:
        """See that nothing that was maximised numerically, which can be held nowhere, has collapsed.

        Raises:
            DegenerateError: a spread went to nothing, or concentrations beyond all limits.
        """
        for book, found in zip(self.books, stats, strict=True):
            if not book.names & set(self.ownership.numeric):
                continue
            values, sharp = book.values(self.coordinates, theta), concentrations(book.family)
            for name in (*sharp, *book.spreads):
                lowest = book.least_concentration(name, values) if name in sharp else None
                bad = (
                    too_narrow(book, name, values[name], self.guard.dtype)
                    if lowest is None
                    else lowest >= SHARP[self.guard.dtype]
                )
                counts = book.cells(name, found, values, None).pool(found[:, -1])
                if bad is None or not bool((bad & (counts > NEGLIGIBLE)).any()):
                    continue
                g = int((bad & (counts > NEGLIGIBLE)).nonzero()[0, 0])
                value = values[name][g].diagonal().abs().amin() if values[name].dim() == 3 else values[name][g]
                value = value.amin() if lowest is None else lowest[g]
                went = "fell" if lowest is None else "rose"
                raise refuse(book, name, g, float(value), float(counts[g]), self.coordinates, went)

    def _solve(self, old: Tensor, stats: tuple[Tensor, ...], point: Point | None) -> Moved:
        theta, found = old if self._are_stretches else old.clone(), dict[int, Tensor]()
        reached: dict[int, dict[str, Tensor]] = {}
        for i, blocks in self._blocks.items():
            book = self.books[i]
            known = None if point is None or point.theta is not old or i in self._late else point.values[id(book)]
            values = book.values(self.coordinates, theta) if known is None else dict(known)
            self._solvers[i](book, blocks, stats[i], values, self.guard)
            for block in blocks:
                if self._are_stretches:
                    reached[id(book)] = values
                    found[book.spans[block.argument] or 0] = values[block.argument]
                else:
                    self._write(book, block, values[block.argument], theta)
        theta = _joined(found, old) if found else theta
        if math.isfinite(theta.sum()):
            return Moved(theta, reached)
        return Moved(torch.where(torch.isfinite(theta), theta, old))  # what no datum speaks of stays as it was

    def is_held(self, theta: Tensor, slack: float = 1 + 1e-6) -> bool:
        """Whether a spread is at most ``slack`` times the floor that the guard holds it at."""
        if not self.guard.floor:
            return False
        if self.regressions is not None and self.regressions.is_held(theta, slack):
            return True
        for i, blocks in self._blocks.items():
            book = self.books[i]
            values = book.values(self.coordinates, theta)
            if any(at_floor(book, b.argument, values[b.argument], slack) for b in blocks):
                return True
            sharp = [b.argument for b in blocks if b.argument in concentrations(book.family)]
            if any(bool((book.least_concentration(n, values) * slack >= CEILING).any()) for n in sharp):
                return True
        return False

    @cached_property
    def is_closed(self) -> bool:
        """Whether no part of it takes gradients."""
        simple = self.regressions is None and not self.ownership.numeric
        return simple and all(is_closed(self.books[i], blocks) for i, blocks in self._blocks.items())

    @cached_property
    def _blocks(self) -> dict[int, list[Block]]:
        """What is solved for, by book."""
        found: dict[int, list[Block]] = {}
        for block in self.ownership.blocks:
            found.setdefault(block.book, []).append(block)
        return found

    @cached_property
    def _late(self) -> frozenset[int]:
        """Books with parameters that one before them may have moved."""
        moved: frozenset[str] = frozenset()
        found = set()
        for i in self._blocks:
            if moved & self.books[i].names:
                found.add(i)
            moved |= self.books[i].names
        return frozenset(found)

    @cached_property
    def _are_stretches(self) -> bool:
        """Whether the blocks are stretches of theta as they stand, which no other book needs in the same turn."""
        return not self._late and all(
            b.all_free and book.links[b.argument] == "identity" and book.spans[b.argument] is not None
            for b in self.ownership.blocks
            for book in [self.books[b.book]]
        )

    @cached_property
    def _solvers(self) -> dict[int, Solver]:
        """How, by book."""
        return {i: solver_of(self.books[i], blocks) for i, blocks in self._blocks.items()}

    def _write(self, book: Book, block: Block, values: Tensor, theta: Tensor) -> None:
        link, rows = LINKS[book.links[block.argument]], book.rows[block.argument]
        found = values if link.name == "identity" else link.inverse(values)
        if not block.all_free:
            rows, found = rows[block.free], found[block.free]
        if rows.dim() < 3:
            if link.name == "square":
                found = found * torch.where(theta[rows] < 0, -1.0, 1.0)
            elif link.name == "softmax":  # of all that give the same row, the nearest to what it was
                found = found + (theta[rows] - found).mean(-1, keepdim=True)
            elif link.name == "normalise":
                found = found * theta[rows].sum(-1, keepdim=True)
            start = book.spans[block.argument] if block.all_free else None
            if start is None:
                theta[rows] = found
            else:
                theta[start : start + found.numel()].copy_(found.reshape(-1))
        elif link.rank == 2:  # an argument may hold one triangle of what the parameter holds whole
            whole = torch.arange(rows[0].numel()).reshape(rows.shape[1:])
            theta[rows[:, :1, :1] + whole] = found
        else:
            inside = rows < len(theta)
            theta[rows[inside]] = found[inside]


def _joined(found: Mapping[int, Tensor], old: Tensor) -> Tensor:
    """theta with these values from these positions on."""
    parts, at = [], 0
    for start in sorted(found):
        if start > at:
            parts.append(old[at:start])
        parts.append(found[start].reshape(-1))
        at = start + found[start].numel()
    return torch.cat([*parts, old[at:]] if at < len(old) else parts)
