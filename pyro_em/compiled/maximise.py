"""The M-step on statistics: every parameter by its owner, in turn, so that Q never falls (ECM; Meng & Rubin 1993)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_em.compiled.cells import Book
from pyro_em.compiled.ownership import Block, Ownership
from pyro_em.compiled.priors import Prior, log_prior
from pyro_em.families import expected_log_likelihood
from pyro_em.families.newton import newton
from pyro_em.probing import LINKS, Coordinates

__all__ = ["Maximiser", "expected"]

SWEEPS = 200
STILL = 1e-13


def expected(
    books: tuple[Book, ...],
    coordinates: Coordinates,
    priors: Mapping[str, Prior],
    stats: tuple[Tensor, ...],
    theta: Tensor,
) -> Tensor:
    """Q at theta, in nats, up to a constant; differentiable in theta."""
    total = log_prior(priors, coordinates, theta)
    for book, s in zip(books, stats, strict=True):
        args = book.spread(book.values(coordinates, theta))
        total = total + expected_log_likelihood(book.family, s, args).sum()
    return total


@dataclass(frozen=True)
class Maximiser:
    """Raises Q over the parameters that statistics decide.

    Attributes:
        books, coordinates: of the model.
        priors: those that count.
        ownership: who owns what.
    """

    books: tuple[Book, ...]
    coordinates: Coordinates
    priors: Mapping[str, Prior]
    ownership: Ownership

    def maximise(self, theta: Tensor, stats: tuple[Tensor, ...]) -> Tensor:
        """theta with every owned parameter at the maximum of Q given the rest."""
        theta = theta.clone()
        for i, book in enumerate(self.books):
            blocks = [b for b in self.ownership.blocks if b.book == i]
            if blocks:
                self._solve(book, blocks, stats[i], theta)
        return self._numeric(theta, stats) if self.ownership.numeric else theta

    def _solve(self, book: Book, blocks: list[Block], stats: Tensor, theta: Tensor) -> None:
        values = book.values(self.coordinates, theta)
        if not self._jointly(book, blocks, stats, values):
            for _ in range(SWEEPS if self._coupled(book, blocks) else 1):
                before = dict(values)
                for block in blocks:
                    values[block.argument] = _conditional(book, block, stats, values)
                if all(_close(values[n], before[n]) for n in values):
                    break
        for block in blocks:
            self._write(book, block, values[block.argument], theta)

    def _jointly(self, book: Book, blocks: list[Block], stats: Tensor, values: dict[str, Tensor]) -> bool:
        """Newton's method over all arguments at once, where one has no closed form and all vary together."""
        names = [b.argument for b in blocks]
        groups = [book.groups[n] for n in names]
        alike = all(torch.equal(groups[0], g) for g in groups[1:]) and all(bool(b.free.all()) for b in blocks)
        if not alike or len(blocks) < 2 or any(b.pseudo is not None for b in blocks):
            return False
        if all(_closed(book, b, stats, values) is not None for b in blocks):
            return False
        cells = book.cells(names[0], stats, values, None)
        location = book.location if book.location in names else None
        shift = None if location is None or book.origin is None else _first_of(book, location, book.origin)
        start = {n: values[n] - shift if n == location and shift is not None else values[n] for n in names}
        found = newton(book.family, tuple(names), stats, cells.args, cells.group, cells.size, start)
        for n in names:
            values[n] = found[n] + shift if n == location and shift is not None else found[n]
        return True

    def _coupled(self, book: Book, blocks: list[Block]) -> bool:
        """Whether the solution of one argument depends on that of another, beyond one sweep in the family's order."""
        if len(book.family.args) == 1:
            return False
        first, *rest = (a.name for a in book.family.args)
        if len(rest) > 1 or type(book.family).__name__ not in ("Normal", "LogNormal", "MultivariateNormal"):
            return True
        if any(b.argument == first and b.pseudo is not None for b in blocks):
            return True
        pairs = torch.stack([book.groups[first], book.groups[rest[0]]]).unique(dim=1)
        return len(pairs[0].unique()) < pairs.shape[1]

    def _write(self, book: Book, block: Block, values: Tensor, theta: Tensor) -> None:
        link = LINKS[book.links[block.argument]]
        rows = book.rows[block.argument][block.free]
        found = link.inverse(values[block.free])
        inside = rows < len(theta)
        if link.name == "square":
            found = found * torch.where(theta[rows.clamp_max(len(theta) - 1)] < 0, -1.0, 1.0)
        theta[rows[inside]] = found[inside]

    def _numeric(self, theta: Tensor, stats: tuple[Tensor, ...]) -> Tensor:
        """L-BFGS over the rest, in unconstrained coordinates; theta itself where that gains nothing."""
        values = self.coordinates.split(theta)
        maps = {n: transform_to(self.coordinates.constraints[n]) for n in self.ownership.numeric}
        points = {n: m.inv(values[n]).detach().clone().requires_grad_(True) for n, m in maps.items()}

        def q() -> tuple[Tensor, Tensor]:
            moved = {**values, **{n: maps[n](points[n]) for n in maps}}
            at = torch.cat([moved[n].reshape(-1) for n in self.coordinates.shapes])
            return expected(self.books, self.coordinates, self.priors, stats, at), at

        optimizer = torch.optim.LBFGS(
            list(points.values()), max_iter=200, history_size=20, tolerance_grad=1e-11, tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> float:
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = -q()[0]
                loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        with torch.no_grad():
            before = float(expected(self.books, self.coordinates, self.priors, stats, theta))
        optimizer.step(closure)
        with torch.no_grad():
            after, at = q()
        return at.detach() if math.isfinite(float(after)) and float(after) >= before else theta


def _closed(book: Book, block: Block, stats: Tensor, values: Mapping[str, Tensor]) -> Tensor | None:
    cells = book.cells(block.argument, stats, values, block.pseudo)
    return book.family.solve(block.argument, cells)


def _conditional(book: Book, block: Block, stats: Tensor, values: dict[str, Tensor]) -> Tensor:
    """The argument's values that maximise Q given the others; where nothing speaks of one, or it stays, as it was."""
    old = values[block.argument]
    cells = book.cells(block.argument, stats, values, block.pseudo)
    is_location = block.argument == book.location and book.origin is not None
    shift = _first_of(book, block.argument, book.origin) if is_location and book.origin is not None else None
    if shift is not None and block.pseudo is not None:
        cells = replace(cells, pseudo=_shifted(block.pseudo, shift))
    found = book.family.solve(block.argument, cells)
    if found is None:
        start = old if shift is None else old - shift
        found = newton(
            book.family, (block.argument,), stats, cells.args, cells.group, cells.size, {block.argument: start}
        )[block.argument]
    found = found if shift is None else found + shift
    free = block.free.reshape(-1, *[1] * (old.dim() - 1))
    return torch.where(free & torch.isfinite(found), found, old)


def _shifted(pseudo: Tensor, shift: Tensor) -> Tensor:
    """Pseudo-statistics (precision times mean, precision) of a location relative to the origin."""
    return torch.stack([pseudo[..., 0] - pseudo[..., 1] * shift, pseudo[..., 1]], -1)


def _first_of(book: Book, argument: str, origin: Tensor) -> Tensor:
    """The origin of each of the argument's values: that of any cell that uses it."""
    found = origin.new_zeros(len(book.rows[argument]), *origin.shape[1:])
    found[book.groups[argument]] = origin
    return found


def _close(new: Tensor, old: Tensor) -> bool:
    return bool((new - old).abs().max() <= STILL * (1 + old.abs().max())) if new.numel() else True


