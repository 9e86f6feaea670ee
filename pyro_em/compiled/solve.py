"""The maximum of Q over the arguments of one book, in closed form or by Newton's method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
from pyro_em.compiled.collapse import floored, ran_out, refuse, too_narrow
from pyro_em.compiled.ownership import Block
from pyro_em.compiled.shared import Shared
from pyro_em.compiled.sharp import CEILING, SHARP, ceilings, concentrations
from pyro_em.compiled.still import is_still
from pyro_em.families import Cells
from pyro_em.families.coupled import is_coupled
from pyro_em.families.newton import NEGLIGIBLE, newton
from pyro_em.probing import Coordinates

__all__ = ["Guard", "Solver", "go_together", "is_closed", "solver_of"]

SWEEPS = 200
STILL = 1e-13
EMPTY = 1e-10  # data that a component holds when it has run out of them


Solver = Callable[[Book, Sequence[Block], Tensor, dict[str, Tensor], "Guard"], None]


@dataclass(frozen=True)
class Guard:
    """What to do about components that collapse.

    Attributes:
        coordinates: of the parameters, to name them.
        floor: hold spreads at a floor instead of raising.
        dtype: of the arithmetic the statistics come from.
        living: by book and argument, which values had data at first.
    """

    coordinates: Coordinates
    floor: bool
    dtype: torch.dtype
    living: dict[tuple[int, str], Tensor] = field(default_factory=dict, repr=False)

    def anew(self) -> Guard:
        """The same for another start."""
        return replace(self, living={})

    def _watch(self, book: Book, block: Block, cells: Cells) -> None:
        """See that no component of a location has run out of data.

        Raises:
            DegenerateError: one has, though it had some at first, and this guard does not floor.
        """
        if block.argument != book.location:
            return
        counts, key = cells.pool(cells.stats[:, -1]), (id(book), block.argument)
        if key not in self.living:
            self.living[key] = counts > 1.0
        if self.floor or float(counts.min()) >= EMPTY:
            return
        living = self.living[key]
        empty = living & block.free & (counts < EMPTY)
        if bool(empty.any()):
            living &= ~empty  # it is said once: the caller may go on without them
            g = int(empty.nonzero()[0, 0])
            raise ran_out(book, block.argument, g, float(counts[g]), self.coordinates)

    def refuse_sharp(self, book: Book, block: Block, lowest: Tensor, cells: Cells) -> None:
        """See that no concentration has grown beyond all limits.

        Raises:
            DegenerateError: one has, of a component that holds data.
        """
        counts = cells.pool(cells.stats[:, -1])
        sharp = (lowest >= SHARP[self.dtype]) & (counts > NEGLIGIBLE) & block.free
        if bool(sharp.any()):
            g = int(sharp.nonzero()[0, 0])
            value, count = float(lowest[g]), float(counts[g])
            raise refuse(book, block.argument, g, value, count, self.coordinates, "rose")

    def checked(self, book: Book, block: Block, values: Tensor, cells: Cells) -> Tensor:
        """The values, none of them collapsed; NaN where one has that next to no datum speaks of.

        Raises:
            DegenerateError: one is, and this guard does not floor.
        """
        self._watch(book, block, cells)
        narrow = too_narrow(book, block.argument, values, self.dtype)
        if narrow is None:
            return values
        if not self.floor and not bool(narrow.any()):
            return values
        counts = cells.pool(cells.stats[:, -1])
        spoken_of = (counts > 0) & block.free
        if self.floor:
            covariance = _covariance(book, cells)
            held = floored(book, block.argument, values, lambda: covariance)
            return torch.where(spoken_of.reshape(-1, *[1] * (values.dim() - 1)), held, values)
        held = narrow & spoken_of & (counts > NEGLIGIBLE)
        if bool(held.any()):
            g = int(held.nonzero()[0, 0])
            value = values[g] if values.dim() == 1 else values[g].diagonal().abs().amin()
            raise refuse(book, block.argument, g, float(value), float(counts[g]), self.coordinates)
        return values.masked_fill((narrow & block.free).reshape(-1, *[1] * (values.dim() - 1)), torch.nan)


def solver_of(book: Book, blocks: Sequence[Block]) -> Solver:
    """The least work that maximises over all of them."""
    if _vary_together(book, blocks):
        return solve_jointly
    if not _depend_on_each_other(book, blocks):
        return _solve_once
    return solve_together if go_together(book, blocks) else solve_in_turn


def _solve_once(book: Book, blocks: Sequence[Block], stats: Tensor, values: dict[str, Tensor], guard: Guard) -> None:
    """Maximise over each argument given those before it, in place; what no datum speaks of may be NaN.

    Not where others would take it from there: cells that share a value of a later argument.
    """
    alone = all(book.own.values())
    for block in blocks:
        found, old = _conditional(book, block, stats, values, guard), values[block.argument]
        is_last = alone or block is blocks[-1]
        values[block.argument] = found if block.all_free and is_last else _kept(block, found, old)


def solve_in_turn(book: Book, blocks: Sequence[Block], stats: Tensor, values: dict[str, Tensor], guard: Guard) -> None:
    """Maximise over each argument given the others, in place, until nothing moves."""
    for sweep in range(SWEEPS):
        before = dict(values)
        for block in blocks:
            values[block.argument] = _kept(
                block, _conditional(book, block, stats, values, guard), before[block.argument]
            )
        if sweep and all(is_still(values[n], before[n], STILL) for n in values):
            return


def solve_jointly(book: Book, blocks: Sequence[Block], stats: Tensor, values: dict[str, Tensor], guard: Guard) -> None:
    """Newton's method over all arguments at once, in place."""
    cells = book.cells(blocks[0].argument, stats, values, None)
    found = _by_newton(book, blocks, cells, values, guard)
    for block in blocks:
        n = block.argument
        values[n] = _kept(block, guard.checked(book, block, _relative(book, n, found[n], 1), cells), values[n])


def solve_together(book: Book, blocks: Sequence[Block], stats: Tensor, values: dict[str, Tensor], guard: Guard) -> None:
    """Newton's method over arguments that cells share in different ways, in place."""
    shared = Shared.of(book, blocks, stats, values, guard.coordinates)
    found = {**values, **shared.maximise()}
    sharp = [b for b in blocks if b.argument in concentrations(book.family)]
    lowest = {b.argument: book.least_concentration(b.argument, found) for b in sharp}
    holds = guard.floor and {*concentrations(book.family)} == lowest.keys()
    if holds and any(bool((level > CEILING).any()) for level in lowest.values()):
        tops = {n: ceilings(book.family, level, {n: found[n]})[n] for n, level in lowest.items()}
        found = {**values, **shared.maximise(tops)}
    for block in sharp if not guard.floor else ():
        cells = book.cells(block.argument, stats, values, None)
        guard.refuse_sharp(book, block, lowest[block.argument], cells)
    values.update(found)


def go_together(book: Book, blocks: Sequence[Block]) -> bool:
    """Whether Newton's method takes all of these arguments at once."""
    fits = is_coupled(book.family, len(blocks), sum(len(b.free) for b in blocks))
    return fits and all(b.meets_priors for b in blocks) and not is_closed(book, blocks)


def _by_newton(
    book: Book, blocks: Sequence[Block], cells: Cells, values: Mapping[str, Tensor], guard: Guard
) -> dict[str, Tensor]:
    """The arguments of the blocks, which vary together, by Newton's method; a location relative to the origin.

    Raises:
        DegenerateError: concentrations went beyond all limits, and the guard does not floor.
    """
    names = tuple(b.argument for b in blocks)
    start = {n: _relative(book, n, values[n], -1) for n in names}
    climb = partial(newton, book.family, names, cells.stats, cells.args, cells.group, cells.size, start)
    found = climb()
    sharp = set(concentrations(book.family))
    block = next((b for b in blocks if b.argument in sharp), None)
    if block is None:
        return found
    lowest = book.least_concentration(block.argument, {**values, **found})
    if guard.floor:
        if not sharp <= found.keys():  # beside one that stays, to hold another would move the mean
            return found
        beyond = bool((lowest > CEILING).any())
        return climb(ceilings(book.family, lowest, found)) if beyond else found
    guard.refuse_sharp(book, block, lowest, cells)
    return found


def _vary_together(book: Book, blocks: Sequence[Block]) -> bool:
    """Whether the arguments need Newton's method and vary together, so that it can take all of them at once."""
    if len(blocks) < 2 or any(b.priors or not b.all_free for b in blocks):
        return False
    groups = [book.groups[b.argument] for b in blocks]
    return all(torch.equal(groups[0], g) for g in groups[1:]) and not is_closed(book, blocks)


def is_closed(book: Book, blocks: Sequence[Block]) -> bool:
    """Whether the family has a solution for every one of these arguments."""
    width = {a.name: a.rank for a in book.family.args}
    args = {
        n: torch.eye(r.shape[-1], dtype=torch.float64).expand(book.size, -1, -1)
        if width[n] == 2
        else torch.full((book.size, *r.shape[1:]), 0.5, dtype=torch.float64)
        for n, r in book.rows.items()
    }
    stats = torch.ones(book.size, book.family.coefficients(**args).shape[-1], dtype=torch.float64)
    return all(
        book.family.solve(b.argument, Cells(stats, args, book.groups[b.argument], len(b.free))) is not None
        for b in blocks
    )


def _depend_on_each_other(book: Book, blocks: Sequence[Block]) -> bool:
    """Whether the solution of one argument depends on that of another, beyond one sweep in the family's order."""
    if len(book.family.args) == 1:
        return False
    first, *rest = book.family.args
    if len(rest) > 1 or not (first.location and rest[0].spread):
        return True
    if any(b.argument == first.name and b.pseudo is not None for b in blocks):
        return True
    return book.is_shared_over(first.name, rest[0].name)


def _conditional(book: Book, block: Block, stats: Tensor, values: Mapping[str, Tensor], guard: Guard) -> Tensor:
    """The argument's values that maximise Q given the others; what no datum speaks of may be NaN."""
    name = block.argument
    cells = book.cells(name, stats, values, block.pseudo)
    if name == book.location and book.shift is not None and block.pseudo is not None:
        cells = replace(cells, pseudo=_shifted(block.pseudo, book.shift))
    found = book.family.solve(name, cells)
    if found is None:
        found = _by_newton(book, [block], cells, values, guard)[name]
    return guard.checked(book, block, _relative(book, name, found, 1), cells)


def _kept(block: Block, found: Tensor, old: Tensor) -> Tensor:
    usable = torch.isfinite(found)
    if not block.all_free:
        usable &= block.free.reshape(-1, *[1] * (old.dim() - 1))
    return torch.where(usable, found, old)


def _relative(book: Book, name: str, values: Tensor, sign: int) -> Tensor:
    """A location relative to the origin (sign -1) or back (1); other arguments as they are."""
    if name != book.location or book.shift is None:
        return values
    return torch.add(values, book.shift, alpha=sign)


def _shifted(pseudo: Tensor, shift: Tensor) -> Tensor:
    """Pseudo-statistics (precision times mean, precision) of a location relative to the origin."""
    return torch.stack([pseudo[..., 0] - pseudo[..., 1] * shift, pseudo[..., 1]], -1)


def _covariance(book: Book, cells: Cells) -> Tensor:
    """For matrices, the covariance about the location of each group."""
    if not hasattr(book.family, "covariance"):
        return cells.stats
    covariance: Tensor = book.family.covariance(cells)
    return covariance
