"""A family's own solution for one argument of sites by element, pooled over all elements that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyro_em.compiled.collapse import Variances, collapsed, held, is_low, is_narrow
from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.pieces import Pieces
from pyro_em.compiled.pool import Pool, pooled, shape_of
from pyro_em.compiled.sharp import CEILING, SHARP, ceilings, concentrations, least
from pyro_em.compiled.solve import Guard
from pyro_em.families import Cells, Family
from pyro_em.families.newton import newton_in_pieces
from pyro_em.families.pieces import in_pieces
from pyro_em.probing import LINKS
from pyro_em.probing.moments import Moments

__all__ = ["Key", "Pooled"]

Key = tuple[Any, str, str]  # family, argument, link
Again = Callable[[], Iterator[tuple[Family, Cells]]]  # another pass over the data
Climb = Callable[..., dict[str, Tensor]]  # Newton's method, which may be given ceilings


@dataclass(frozen=True)
class Pooled:
    """One argument of the sites of one family.

    Attributes:
        key: which.
        movable: positions in theta that may move.
        variances: of the data behind each value, once they have been gone through.
    """

    key: Key
    movable: Tensor
    variances: list[Variances] = field(default_factory=list, repr=False)

    @property
    def is_spread(self) -> bool:
        """Whether the likelihood grows without bound as it shrinks."""
        kind, name, _ = self.key
        return any(a.spread for a in kind.args if a.name == name)

    @property
    def takes_newton(self) -> bool:
        """Whether its family has no solution for it."""
        kind, name, _ = self.key
        return next(a for a in kind.args if a.name == name).is_numeric

    def is_held(self, factors: Sequence[ElementFactor], theta: Tensor, slack: float) -> bool:
        """Whether a spread is at most ``slack`` times its floor, or a concentration at its ceiling.

        Args:
            factors: of all data, or of some that have every value.
        """
        kind, name, _ = self.key
        is_concentration = name in concentrations(kind)
        if not self.is_spread and not is_concentration:
            return False
        pool = self._pool(factors, theta)
        if is_concentration:
            lowest = least(kind, pool.args, pool.group, len(pool.values))
            return bool((lowest * slack >= CEILING).any())
        data = self.variances[0] if self.variances else _Units().add(pool).variances()
        return is_low(pool.present, data.base, slack)

    def solve(self, theta: Tensor, pieces: Pieces, guard: Guard) -> Tensor:
        """theta at the maximum of Q over this argument.

        Raises:
            DegenerateError: a spread went to nothing, under a guard that does not floor.
        """
        _, name, link = self.key
        seen = _Seen()
        found = in_pieces(lambda family, cells: family.solve(name, cells), self._cells(pieces, theta, seen))
        if found is None:
            seen = _Seen()
            for _ in self._cells(pieces, theta, seen):
                pass
        pool = seen.pool
        if found is None:
            again = partial(self._cells, pieces, theta, _Seen())
            climb = partial(newton_in_pieces, pool.family, (name,), again, {name: pool.present})
            found = self._limited(pool, climb()[name], seen, guard, climb)
        if self.is_spread:
            self.variances[:] = [seen.units.variances()]
            again = partial(self._cells, pieces, theta, _Seen())
            found = self._guarded(pool, found, seen, guard, again)
        inverse = LINKS[link].inverse(found).reshape(len(pool.values), -1)
        places = pool.values
        if LINKS[link].rank == 2:  # an argument may hold one triangle of what the parameter holds whole
            places = places[:, :1] + torch.arange(places.shape[1])
        inside = torch.isin(places, self.movable) & torch.isfinite(inverse)
        theta = theta.clone()
        theta[places[inside]] = inverse[inside]
        return theta

    def _cells(self, pieces: Pieces, theta: Tensor, seen: _Seen) -> Iterator[tuple[Family, Cells]]:
        for piece in pieces:
            pool = self._pool(piece.factors, theta)
            cells = pool.cells(piece)
            seen.note(pool, cells, self.is_spread)
            yield pool.family, cells

    def _pool(self, factors: Sequence[ElementFactor], theta: Tensor) -> Pool:
        kind, name, link = self.key
        alike = [f for f in factors if type(f.family) is kind and not f.routes[name].is_affine]
        return pooled([f for f in alike if f.routes[name].link == link], name, theta)

    def _limited(self, pool: Pool, found: Tensor, seen: _Seen, guard: Guard, climb: Climb) -> Tensor:
        """What Newton's method found, no concentration beyond all limits."""
        kind, name, _ = self.key
        if name not in concentrations(kind):
            return found
        lowest = least(kind, {**pool.args, name: found[pool.group]}, pool.group, len(found))
        if not guard.floor:
            self._refuse(pool, seen, lowest, guard)
        elif concentrations(kind) == [name] and bool((lowest > CEILING).any()):
            return climb(ceilings(kind, lowest, {name: found}))[name]
        return found

    def ceilings(self, theta: Tensor, pieces: Pieces) -> Tensor:
        """How far the argument may go at each movable position, where concentrations are beyond their ceiling."""
        kind, name, _ = self.key
        highest = torch.full((len(theta) + 1,), torch.inf, dtype=torch.float64)
        if name in concentrations(kind):
            seen = _Seen()
            lowest = self._lowest(theta, pieces, seen)
            pool = seen.pool
            highest[pool.values[:, 0].clamp_max(len(theta))] = ceilings(kind, lowest, {name: pool.present})[name]
        return highest[self.movable]

    def refuse_sharp(self, theta: Tensor, pieces: Pieces, guard: Guard) -> None:
        """See that no concentration is beyond all limits.

        Raises:
            DegenerateError: one is, of a component that holds data.
        """
        kind, name, _ = self.key
        if name in concentrations(kind):
            seen = _Seen()
            lowest = self._lowest(theta, pieces, seen)
            self._refuse(seen.pool, seen, lowest, guard)

    def _lowest(self, theta: Tensor, pieces: Pieces, seen: _Seen) -> Tensor:
        """The least concentration beside each value, over all pieces."""
        passes = self._cells(pieces, theta, seen)
        found = [
            least(self.key[0], cells.args, cells.group, cells.size) for _, cells in passes if cells.group is not None
        ]
        return torch.stack(found).amin(0)

    def _refuse(self, pool: Pool, seen: _Seen, lowest: Tensor, guard: Guard) -> None:
        kind, name, _ = self.key
        sharp = (lowest >= SHARP[guard.dtype]) & self._spoken_of(pool, seen)
        if bool(sharp.any()):
            g = int(sharp.nonzero()[0, 0])
            element, value, count = int(pool.values[g].reshape(-1)[0]), float(lowest[g]), float(seen.counts[g])
            raise collapsed(kind.__name__, name, element, value, count, guard.coordinates, "rose")

    def _spoken_of(self, pool: Pool, seen: _Seen) -> Tensor:
        """Which values have data and may move, shape (G,)."""
        return (seen.counts > 0) & torch.isin(pool.values, self.movable).any(1)

    def _guarded(self, pool: Pool, found: Tensor, seen: _Seen, guard: Guard, again: Again) -> Tensor:
        """The values, none of them collapsed."""
        kind, name, _ = self.key
        data, spoken_of = self.variances[0], self._spoken_of(pool, seen)
        if guard.floor:
            lifted = held(found, data.base, lambda: _covariance(again()))
            return torch.where(spoken_of.reshape(-1, *[1] * (found.dim() - 1)), lifted, found)
        narrow = is_narrow(found, data.most, guard.dtype) & spoken_of
        if bool(narrow.any()):
            g = int(narrow.nonzero()[0, 0])
            value = found[g] if found.dim() == 1 else found[g].diagonal().abs().amin()
            element = int(pool.values[g, 0])
            raise collapsed(kind.__name__, name, element, float(value), float(seen.counts[g]), guard.coordinates)
        return found


def _covariance(pieces: Iterable[tuple[Any, Cells]]) -> Tensor:
    """Of each value of a matrix, what its data have about their locations."""

    def of_cells(family: Any, cells: Cells) -> Tensor | None:
        found: Tensor = family.covariance(cells)
        return found

    found = in_pieces(of_cells, pieces)
    assert found is not None
    return found


@dataclass
class _Units:
    """Moments of the data of each site, and which values it uses."""

    parts: list[tuple[Moments, Tensor]] = field(default_factory=list)

    def add(self, pool: Pool) -> _Units:
        """Count a piece."""
        before, self.parts, at = self.parts, [], 0
        for i, f in enumerate(pool.members):
            group = pool.group[at : at + prod(shape_of(f))]
            at += prod(shape_of(f))
            found, used = Moments.of(_present(f), (0, 1, 2)), torch.bincount(group, minlength=len(pool.values)) > 0
            if before:
                found, used = before[i][0] + found, before[i][1] | used
            self.parts.append((found, used))
        return self

    def variances(self) -> Variances:
        """Of the data behind each value, site by site; zero of a value that no site uses."""
        used = torch.stack([used for _, used in self.parts])
        found = torch.stack([seen.squares / seen.count.clamp_min(1) for seen, _ in self.parts]).unsqueeze(1)
        used = used.reshape(*used.shape, *[1] * (found.dim() - 2))
        least = torch.where(used, found, torch.inf).amin(0)
        return Variances(torch.where(used.any(0), least, 0.0), torch.where(used, found, 0.0).amax(0))


def _present(factor: ElementFactor) -> Tensor:
    """A site's data, NaN where a mask hides them."""
    x = factor.data(slice(None))
    if factor.mask is None:
        return x
    seen = factor.mask.any(1, keepdim=True)
    return torch.where(seen.reshape(*seen.shape, *[1] * (x.dim() - 3)), x, torch.nan)


@dataclass
class _Seen:
    """What a pass leaves behind: the first pool, whose values are those of all, counts, and units for spreads."""

    pools: list[Pool] = field(default_factory=list)
    counted: list[Tensor] = field(default_factory=list)
    units: _Units = field(default_factory=_Units)

    @property
    def pool(self) -> Pool:
        return self.pools[0]

    @property
    def counts(self) -> Tensor:
        """Data behind each value."""
        return self.counted[0]

    def note(self, pool: Pool, cells: Cells, is_spread: bool) -> None:
        """Count a piece."""
        counts = cells.pool(cells.stats[:, -1])
        self.pools = self.pools or [pool]
        self.counted = [self.counted[0] + counts if self.counted else counts]
        if is_spread:
            self.units.add(pool)
