"""Who maximises which parameter: one owner each.

A parameter is solved in *closed form*, or by *newton*, where every use of it is one argument of one book, each of its
elements standing for one value of that argument, under a constraint that the argument's own domain implies. Parameters
of tensors sites that fail this are maximised numerically over the same *statistics*; what no argument reveals is left
to the traced *gradient*.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.compiled.cells import Book
from pyro_em.compiled.priors import Prior, pseudo_statistics
from pyro_em.families.coupled import is_coupled
from pyro_em.families.newton import REAL
from pyro_em.probing import LINKS, Coordinates

__all__ = ["Block", "Ownership", "share_out", "takes_newton"]


@dataclass(frozen=True)
class Block:
    """One argument of one book, and which of its values its owner may move.

    Attributes:
        book: position of the book.
        argument: its name.
        free: shape (G,).
        pseudo: of conjugate priors, shape (G, ...); ``None`` without one.
        params: the parameters it owns.
        priors: of these; some may have no pseudo-statistics, where arguments move together.
        meets_priors: whether Newton's method can take these priors with it.
    """

    book: int
    argument: str
    free: Tensor
    pseudo: Tensor | None
    params: frozenset[str]
    priors: Mapping[str, Prior] = field(default_factory=dict)
    meets_priors: bool = True

    @cached_property
    def all_free(self) -> bool:
        """Whether none of the values stays."""
        return bool(self.free.all())


@dataclass(frozen=True)
class Ownership:
    """Owners of all parameters that reach books.

    Attributes:
        blocks: what is solved in closed form or by Newton's method.
        numeric: names of parameters maximised numerically over the statistics.
        reasons: for these, why.
    """

    blocks: tuple[Block, ...]
    numeric: tuple[str, ...]
    reasons: dict[str, str]


def share_out(
    books: tuple[Book, ...], coordinates: Coordinates, priors: Mapping[str, Prior], frozen: Collection[str]
) -> Ownership:
    """Give each parameter its owner.

    Args:
        frozen: names that nobody may move here: fixed ones and those of the traced gradient.
    """
    uses: dict[str, list[tuple[int, str]]] = {name: [] for name in coordinates.shapes}
    for i, book in enumerate(books):
        for a in book.family.args:
            for name in _params(book.rows[a.name], coordinates):
                uses[name].append((i, a.name))
    reasons: dict[str, str] = {}
    for name, places in uses.items():
        if name not in frozen and places:
            reason = _objection(name, places, books, coordinates, frozen)
            if reason is not None:
                reasons[name] = reason
    _spread_objections(books, coordinates, reasons, frozen)
    _object_to_priors(books, coordinates, priors, reasons, frozen)
    _spread_objections(books, coordinates, reasons, frozen)
    blocks = []
    for i, book in enumerate(books):
        for a in book.family.args:
            own = frozenset(_params(book.rows[a.name], coordinates)) - set(reasons) - set(frozen)
            if own:
                free = _of(own, book.rows[a.name], coordinates)
                known = {n: priors[n] for n in sorted(own) if n in priors}
                meets = _can_meet(book, a.name, known, coordinates)
                blocks.append(Block(i, a.name, free, _pseudo(book, a.name, known, coordinates), own, known, meets))
    return Ownership(tuple(blocks), tuple(reasons), reasons)


def _params(rows: Tensor, coordinates: Coordinates) -> list[str]:
    owner, names = coordinates.owner(), list(coordinates.shapes)
    used = rows[rows < len(owner)]
    return [names[i] for i in owner[used].unique().tolist()]


def _of(names: Collection[str], rows: Tensor, coordinates: Coordinates) -> Tensor:
    """Which values of an argument stand on these parameters, shape (G,)."""
    wanted = torch.tensor([n in names for n in coordinates.shapes] + [False])
    owner = torch.cat([coordinates.owner(), torch.tensor([len(coordinates.shapes)])])
    return wanted[owner[rows.clamp_max(len(owner) - 1)]].reshape(len(rows), -1).any(1)


def _objection(
    name: str,
    places: list[tuple[int, str]],
    books: tuple[Book, ...],
    coordinates: Coordinates,
    frozen: Collection[str],
) -> str | None:
    """Why a parameter has no solution of its own, or ``None``."""
    if len(places) > 1:
        kinds = " and ".join(f"{a} of {type(books[i].family).__name__}" for i, a in places)
        return f"it is {kinds} at once"
    at, argument = places[0]
    book = books[at]
    form = next(a for a in book.family.args if a.name == argument)
    rows, link = book.rows[argument], book.links[argument]
    start, size = coordinates.starts()[name], torch.Size(coordinates.shapes[name]).numel()
    mine = rows[(rows >= start) & (rows < start + size)]
    if len(mine.unique()) < len(mine):
        return f"its elements are shared by several values of {argument}"
    if form.rank and {n for n in _params(rows[_of({name}, rows, coordinates)], coordinates)} & set(frozen):
        return f"it shares rows of {argument} with parameters that stay"
    if not implied(link, form.domain, coordinates.constraints[name]):
        return f"its constraint {coordinates.constraints[name]} is narrower than {argument} needs"
    return None


def _object_to_priors(
    books: tuple[Book, ...],
    coordinates: Coordinates,
    priors: Mapping[str, Prior],
    reasons: dict[str, str],
    frozen: Collection[str],
) -> None:
    """Only where all arguments move together may a prior be any."""
    for book in books:
        own = {a.name: set(_params(book.rows[a.name], coordinates)) - {*reasons, *frozen} for a in book.family.args}
        moved = [a for a, names in own.items() if names]
        together = is_coupled(book.family, len(moved), sum(len(book.rows[a]) for a in moved)) and all(
            _can_meet(book, a, {n: priors[n] for n in names & priors.keys()}, coordinates) for a, names in own.items()
        )
        for argument, names in own.items():
            for n in sorted(names & priors.keys()) if not together else ():
                if pseudo_statistics(book, argument, priors[n], coordinates) is None:
                    reasons[n] = f"its prior ({priors[n].kind}) is not conjugate to {type(book.family).__name__}"


def _spread_objections(
    books: tuple[Book, ...], coordinates: Coordinates, reasons: dict[str, str], frozen: Collection[str]
) -> None:
    """Vectors made of several parameters are solved whole or not at all."""
    for book in books:
        for a in book.family.args:
            if not a.rank:
                continue
            for row in book.rows[a.name]:
                names = _params(row, coordinates)
                bad = [n for n in names if n in reasons]
                for n in names if bad else []:
                    if n not in frozen:
                        reasons.setdefault(n, f"it shares rows of {a.name} with {bad[0]!r}")


def takes_newton(link: str, priors: Mapping[str, Prior]) -> bool:
    """Whether priors on parameters behind an argument have curvature, and the way back to them one branch."""
    return not priors or (link != "square" and all(prior.is_smooth for prior in priors.values()))


def _can_meet(book: Book, argument: str, priors: Mapping[str, Prior], coordinates: Coordinates) -> bool:
    """Whether Newton's method over the argument's values can have these priors: it moves all elements that they do."""
    rows, starts = book.rows[argument], coordinates.starts()
    for name in priors:
        size = torch.Size(coordinates.shapes[name]).numel()
        if len(rows[(rows >= starts[name]) & (rows < starts[name] + size)].unique()) < size:
            return False
    return takes_newton(book.links[argument], priors)


def _pseudo(book: Book, argument: str, priors: Mapping[str, Prior], coordinates: Coordinates) -> Tensor | None:
    found = [pseudo_statistics(book, argument, prior, coordinates) for prior in priors.values()]
    parts = [p for p in found if p is not None]
    return None if not parts else torch.stack(parts).sum(0)


def implied(link: str, domain: Any, constraint: Any) -> bool:
    """Whether the constraint holds for every g^-1 of a point in the domain."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint in REAL:
        return link not in ("cholesky", "precision_cholesky") and domain is not constraints.lower_cholesky
    if LINKS[link].rank == 2:
        return constraint is constraints.positive_definite
    if domain is constraints.lower_cholesky:
        return type(constraint).__name__ in ("_LowerCholesky", "_SoftplusLowerCholesky")
    if domain is constraints.simplex:
        return (
            constraint is constraints.simplex if link == "identity" else link == "normalise" and _positive(constraint)
        )
    if link in ("exp", "softplus", "sigmoid"):
        return False
    if link == "log":
        return _positive(constraint)
    if domain in REAL:
        return False
    unit = getattr(domain, "upper_bound", None) is not None
    if unit and link == "identity":
        return (_is_bound(constraint, "lower", 0.0) and _is_bound(constraint, "upper", 1.0)) or _positive(constraint)
    return _positive(constraint)


def _positive(constraint: Any) -> bool:
    return _is_bound(constraint, "lower", 0.0) and getattr(constraint, "upper_bound", None) is None


def _is_bound(constraint: Any, side: str, value: float) -> bool:
    """Whether all elements have this bound, which may be a number or a tensor."""
    bound = getattr(constraint, f"{side}_bound", None)
    return bound is not None and bool((torch.as_tensor(bound) == value).all())
