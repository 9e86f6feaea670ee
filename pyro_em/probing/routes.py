"""How parameters reach one argument of one distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.probing.coordinates import Coordinates
from pyro_em.probing.links import LINKS, Link

__all__ = ["Affine", "Opaque", "Route", "Selected", "linked", "values_of"]


@dataclass(frozen=True)
class Selected:
    """Every entry of the argument is g(one element of theta), or a constant.

    Attributes:
        index: positions in theta, shape (*dims, *events, *block) with one along axes that repeat; -1 - k stands for
            ``constants[k]``.
        constants: values that no parameter touches.
        link: name of g.
    """

    index: Tensor
    constants: Tensor
    link: str = "identity"

    @property
    def is_constant(self) -> bool:
        """Whether no parameter is among the entries."""
        return bool((self.index < 0).all())

    @property
    def verdict(self) -> str:
        """The word for it in reports."""
        if self.is_constant:
            return "constant"
        return "selection" if self.link == "identity" else "linked"


@dataclass(frozen=True)
class Affine:
    """The argument, mapped by g^-1, is offset + design @ theta[columns].

    Attributes:
        columns: positions in theta, shape (m,).
        design: shape (*dims, *events, m), one along axes that repeat.
        offset: shape (*dims, *events).
        link: name of g.
    """

    columns: Tensor
    design: Tensor
    offset: Tensor
    link: str = "identity"
    verdict: str = "affine"


@dataclass(frozen=True)
class Opaque:
    """Parameters reach the argument in no way that is known.

    Attributes:
        params: their names.
        reason: why, as the end of a sentence.
    """

    params: tuple[str, ...]
    reason: str
    verdict: str = "opaque"


Route = Selected | Affine | Opaque


def linked(coordinates: Coordinates, theta: Tensor, link: str) -> Tensor:
    """g of every element of theta, NaN where g does not apply to the parameter's shape."""
    g = LINKS[link]
    parts = []
    for value in coordinates.split(theta).values():
        block = value.shape[value.dim() - g.rank :]
        fits = value.dim() >= g.rank and value.numel() > 0 and len(set(block)) <= 1 and (g.rank == 0 or block[0] > 1)
        parts.append((_applied(g, value) if fits else torch.full_like(value, torch.nan)).reshape(-1))
    return torch.cat(parts) if parts else theta


def _applied(g: Link, value: Tensor) -> Tensor:
    """g of a parameter's elements. Beyond its domain (the root of a location) it is NaN, and so would be the gradient,
    though nobody takes these elements: zero times NaN.
    """
    if not value.requires_grad:
        return g.forward(value)
    with torch.no_grad():
        inside = torch.isfinite(g.forward(value))
        for _ in range(g.rank):
            inside = inside.all(-1)
    inside = inside.reshape([*inside.shape, *[1] * g.rank])
    neutral = torch.eye(value.shape[-1], dtype=value.dtype) if g.rank == 2 else torch.ones((), dtype=value.dtype)
    return torch.where(inside, g.forward(torch.where(inside, value, neutral)), torch.nan)


def values_of(route: Selected, coordinates: Coordinates, theta: Tensor) -> Tensor:
    """The argument at theta, over the axes of ``route.index``; differentiable in theta."""
    source = theta if route.link == "identity" else linked(coordinates, theta, route.link)
    return torch.cat([source, route.constants.flip(0)])[route.index]
