"""Elementwise and rowwise maps between a parameter and the argument it reaches, with their inverses.

A link g says argument = g(parameter). Rowwise links act on a parameter's last axis, matrix links on its last two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["LINKS", "Link", "candidates"]

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Link:
    """A link.

    Attributes:
        name: as reported to people.
        rank: the event dimensions it acts on: 0 for each element, 1 for rows, 2 for matrices.
        forward: from parameter to argument.
        inverse: back; of a square, the positive root.
    """

    name: str
    rank: int
    forward: Map
    inverse: Map


def _identity(x: Tensor) -> Tensor:
    return x


def _precision_cholesky(precision: Tensor) -> Tensor:
    """The Cholesky factor of the inverse, by the factor of the matrix turned about both axes."""
    factor = torch.linalg.cholesky_ex(precision.flip(-2, -1)).L
    turned = factor.flip(-2, -1).mT
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype)
    return torch.linalg.solve_triangular(turned, eye, upper=False)


LINKS = {
    link.name: link
    for link in (
        Link("identity", 0, _identity, _identity),
        Link("exp", 0, torch.exp, torch.log),
        Link("softplus", 0, softplus, lambda y: y + torch.log(-torch.expm1(-y))),
        Link("sigmoid", 0, torch.sigmoid, torch.logit),
        Link("sqrt", 0, torch.sqrt, torch.square),
        Link("square", 0, torch.square, torch.sqrt),
        Link("reciprocal", 0, torch.reciprocal, torch.reciprocal),
        Link("reciprocal sqrt", 0, torch.rsqrt, lambda y: y.square().reciprocal()),
        Link("log", 0, torch.log, torch.exp),
        Link("softmax", 1, lambda x: x.softmax(-1), torch.log),
        Link("normalise", 1, lambda x: x / x.sum(-1, keepdim=True), _identity),
        Link("cholesky", 2, lambda x: torch.linalg.cholesky_ex(x).L, lambda y: y @ y.mT),
        Link("precision_cholesky", 2, _precision_cholesky, torch.cholesky_inverse),
    )
}


def candidates(rank: int) -> tuple[Link, ...]:
    """Links an argument of this rank can have, the plainest first."""
    return tuple(link for link in LINKS.values() if link.rank in (0, rank))
