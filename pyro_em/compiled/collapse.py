"""Components that collapse: found as they happen, and treated as the caller chose.

The likelihood of a location-scale family is unbounded: a component on one datum, or on several equal ones, gains
without limit as its spread goes to nothing (Kiefer & Wolfowitz 1956). What arithmetic then reports is not a fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
from pyro_em.errors import DegenerateError
from pyro_em.probing import Coordinates

__all__ = [
    "COLLAPSED",
    "FLOOR",
    "Variances",
    "at_floor",
    "collapsed",
    "floored",
    "held",
    "is_low",
    "is_narrow",
    "ran_out",
    "refuse",
    "too_narrow",
]

# Variance as a share of the data's: below COLLAPSED second moments are rounding errors; FLOOR is what is left instead.
COLLAPSED = {torch.float64: 1e-11, torch.float32: 1e-6}
FLOOR = 1e-6


@dataclass(frozen=True)
class Variances:
    """Variances of the data behind each value of a spread, which several sites or columns may share in their own units.

    Attributes:
        least, most: among those that share it, shape (G,) or (G, D).
    """

    least: Tensor
    most: Tensor

    @property
    def base(self) -> Tensor:
        """What a floor is a share of: the least, as far as rounding in the data of most variance lets it be told."""
        return self.least.maximum(COLLAPSED[torch.float64] / FLOOR * self.most)


def reference(book: Book, argument: str) -> Variances | None:
    """The data's variances behind each value of a spread argument."""
    if book.variance is None:
        return None
    if argument not in book.references:
        least, most = (book.of_groups(argument, book.variance, how) for how in ("amin", "amax"))
        book.references[argument] = Variances(least, most)
    found: Variances = book.references[argument]
    return found


def too_narrow(book: Book, argument: str, values: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Which values of a spread argument are nothing, shape (G,); ``None`` for other arguments."""
    if argument not in book.spreads:
        return None
    data = reference(book, argument)
    return None if data is None else is_narrow(values, data.most, dtype)


def is_narrow(values: Tensor, data: Tensor, dtype: torch.dtype) -> Tensor:
    """Which spreads (G,) or (G, D, D) are nothing beside the data's variances (G,) or (G, D)."""
    if values.dim() == 1:  # NaN is a value that no datum spoke of
        return values.square() <= COLLAPSED[dtype] * data
    return ~(values.diagonal(dim1=-2, dim2=-1).square() > COLLAPSED[dtype] * data).all(-1)


def at_floor(book: Book, argument: str, values: Tensor, slack: float) -> bool:
    """Whether some variance of a spread argument is at most ``slack`` times its floor."""
    data = reference(book, argument)
    if data is None or argument not in book.spreads:
        return False
    return is_low(values, data.base, slack)


def is_low(values: Tensor, data: Tensor, slack: float) -> bool:
    """Whether some variance is at most ``slack`` times its floor, a share of the data's variances."""
    if values.dim() > 1:
        unit = data.clamp_min(torch.finfo(data.dtype).tiny).sqrt()
        scaled = values / unit.unsqueeze(-1)
        return bool((torch.linalg.eigvalsh(scaled @ scaled.mT) <= FLOOR * slack).any())
    return bool((values.square() <= FLOOR * slack * data).any())


def floored(book: Book, argument: str, values: Tensor, covariance: Callable[[], Tensor]) -> Tensor:
    """The maximiser among spreads of at least ``FLOOR`` of the data's variance.

    Args:
        values: the maximiser among all; NaN where it is not positive definite.
        covariance: for matrices, the covariance they come from.
    """
    data = reference(book, argument)
    assert data is not None
    return held(values, data.base, covariance)


def held(values: Tensor, data: Tensor, covariance: Callable[[], Tensor]) -> Tensor:
    """The same from the data's variances."""
    if values.dim() == 1:
        return values.nan_to_num(0.0).maximum((FLOOR * data).sqrt())
    unit = data.clamp_min(torch.finfo(data.dtype).tiny).sqrt()
    scaled = (covariance() / unit.unsqueeze(-1) / unit.unsqueeze(-2)).nan_to_num(0.0)  # of no data
    levels, axes = torch.linalg.eigh(scaled)
    raised = (axes * levels.clamp_min(FLOOR).unsqueeze(-2)) @ axes.mT
    factor = torch.linalg.cholesky(raised) * unit.unsqueeze(-1)
    narrow = (levels < FLOOR).any(-1)[:, None, None] | torch.isnan(values)
    return torch.where(narrow, factor, values)


def refuse(
    book: Book, argument: str, group: int, value: float, count: float, coordinates: Coordinates, went: str = "fell"
) -> DegenerateError:
    """The error for a collapsed value of a spread, or one of a concentration, which rose."""
    element = int(book.rows[argument][group].reshape(-1)[0])
    return collapsed(type(book.family).__name__, argument, element, value, count, coordinates, went)


def collapsed(
    family: str, argument: str, element: int, value: float, count: float, coordinates: Coordinates, went: str = "fell"
) -> DegenerateError:
    """The same from the position of the parameter's element in theta."""
    name, index = _element(element, coordinates)
    return DegenerateError(
        f"A component collapsed: {argument} of {family}, given by parameter {name!r} at "
        f"{list(index)}, {went} to {value:.3g} while it holds {count:.3g} data. {WHY[went]} "
        f"Share the parameter over components, give it a prior, start elsewhere (restarts=, start=), or {CHOICES}.",
        name,
        index,
        value,
    )


def ran_out(book: Book, argument: str, group: int, count: float, coordinates: Coordinates) -> DegenerateError:
    """The error for a component without data."""
    name, index = _element(int(book.rows[argument][group].reshape(-1)[0]), coordinates)
    return DegenerateError(
        f"A component is empty: {argument} of {type(book.family).__name__}, given by parameter {name!r} at "
        f"{list(index)}, holds {count:.3g} data. Take fewer components, start elsewhere (restarts=, start=), or "
        f"{CHOICES}.",
        name,
        index,
        count,
    )


WHY = {
    "fell": "On equal data the likelihood has no maximum; or there is a datum so far off that nothing can be resolved "
    "beside it: look for that first.",
    "rose": "The likelihood has no maximum there.",
}
CHOICES = 'choose on_degenerate="floor", "drop" or "restart"'


def _element(element: int, coordinates: Coordinates) -> tuple[str, tuple[int, ...]]:
    """The parameter, and its element, at a position in theta."""
    for name, start in coordinates.starts().items():
        shape = coordinates.shapes[name]
        if start <= element < start + torch.Size(shape).numel():
            index = torch.unravel_index(torch.tensor(element - start), shape) if shape else ()
            return name, tuple(int(i) for i in index)
    raise AssertionError("a collapsed value stands on no parameter")
