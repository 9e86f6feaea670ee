"""Q as a function of theta, and its numerical maximisation where no family knows the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_em.compiled.cells import Book
from pyro_em.compiled.priors import Prior, log_prior
from pyro_em.families import expected_log_likelihood
from pyro_em.optim import climbing
from pyro_em.probing import Coordinates

__all__ = ["climb", "expected"]


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


def climb(q: Callable[[Tensor], Tensor], coordinates: Coordinates, theta: Tensor, free: Collection[str]) -> Tensor:
    """theta with the ``free`` parameters at a maximum of q(theta), by L-BFGS in unconstrained coordinates; theta itself
    where nothing is gained.
    """
    values = coordinates.split(theta)
    maps = {n: transform_to(coordinates.constraints[n]) for n in free}
    points = {n: m.inv(values[n]).detach().clone().requires_grad_(True) for n, m in maps.items()}

    def here() -> Tensor:
        moved = {**values, **{n: maps[n](points[n]) for n in maps}}
        return torch.cat([moved[n].reshape(-1) for n in coordinates.shapes])

    optimizer = climbing(list(points.values()), max_iter=200, tolerance_grad=1e-11, tolerance_change=1e-14)

    def closure() -> float:
        optimizer.zero_grad()
        try:
            with torch.enable_grad():
                loss = -q(here())
                loss.backward()
        except (ValueError, torch.linalg.LinAlgError):  # rounding takes a trial point to an edge: the search steps back
            return math.inf
        return float(loss.detach())

    with torch.no_grad():
        before = float(q(theta))
    optimizer.step(closure)
    with torch.no_grad():
        at = here().detach()
        after = float(q(at))
    return at if math.isfinite(after) and after >= before else theta
