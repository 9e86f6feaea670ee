"""Sites some of whose arguments are affine in the parameters: every element has arguments of its own.

Mixtures of regressions, covariates on the class, autoregressive emissions. No statistics are sufficient for these, so
an E-step leaves the posterior of the states, and an M-step goes back to the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor

from pyro_em.compiled.factor import active_rows, element_shape, grouped, multiplicity
from pyro_em.families import Augmented, Family
from pyro_em.graph import Plate, Variable
from pyro_em.probing import Affine, Coordinates, ProbedSite, Selected, SiteParts, Stack
from pyro_em.probing.affine import PREDICTORS
from pyro_em.probing.routes import linked

__all__ = ["ElementFactor", "ElementRoute", "element_factor"]


@dataclass(frozen=True)
class ElementRoute:
    """An argument over rows, states and elements.

    Attributes:
        link: name of its link.
        index: for a selection, positions in (theta, constants), shape (n or 1, K or 1, E, *block).
        constants: what stands behind theta.
        columns: for an affine argument, positions in theta, shape (m,).
        design: shape (n or 1, K or 1, E, *block, m).
        offset: shape (n or 1, K or 1, E, *block).
    """

    link: str
    index: Tensor | None = None
    constants: Tensor | None = None
    columns: Tensor | None = None
    design: Tensor | None = None
    offset: Tensor | None = None

    @property
    def is_affine(self) -> bool:
        """Whether it has a design."""
        return self.design is not None

    def part(self, tensor: Tensor, rows: slice) -> Tensor:
        """The rows of a tensor that has them."""
        return tensor if tensor.shape[0] == 1 else tensor[rows]

    def predictor(self, theta: Tensor, rows: slice) -> Tensor:
        """offset + design @ theta[columns]."""
        assert self.design is not None and self.offset is not None and self.columns is not None
        return self.part(self.offset, rows) + self.part(self.design, rows) @ theta[self.columns]

    def value(self, coordinates: Coordinates, theta: Tensor, rows: slice) -> Tensor:
        """The argument at theta."""
        if self.is_affine:
            return PREDICTORS[self.link][1](self.predictor(theta, rows))
        assert self.index is not None and self.constants is not None
        source = theta if self.link == "identity" else linked(coordinates, theta, self.link)
        return torch.cat([source, self.constants])[self.part(self.index, rows)]


@dataclass(frozen=True, eq=False)
class ElementFactor:
    """A site by elements; attributes as in :class:`~pyro_em.compiled.factor.TensorFactor`."""

    name: str
    family: Family
    coordinates: Coordinates
    plates: tuple[Plate, ...]
    scope: tuple[Variable, ...]
    x: Tensor
    mask: Tensor | None
    active: Tensor | None
    own: Variable | None
    routes: dict[str, ElementRoute]
    multiplicity: Tensor | None = None
    stack: Stack | None = None

    is_dense = False
    is_constant = False

    @property
    def is_augmented(self) -> bool:
        """Whether features depend on the arguments."""
        return bool(getattr(self.family, "augmented", False))

    @property
    def num_rows(self) -> int:
        """Number of rows n."""
        return prod(p.size for p in self.plates)

    @property
    def num_states(self) -> int:
        """Number of joint states K."""
        return prod(v.size for v in self.scope)

    def args(self, theta: Tensor, rows: slice) -> dict[str, Tensor]:
        """All arguments, each over (n or 1, K or 1, E, *block)."""
        return {n: r.value(self.coordinates, theta, rows) for n, r in self.routes.items()}

    def data(self, rows: slice) -> Tensor:
        """Data over (n or 1, K or 1, E, *event), float64; what is missing, zero."""
        x = (self.x if self.x.shape[0] == 1 else self.x[rows]).to(torch.float64)
        return x.nan_to_num(0.0, 0.0, 0.0) if self.mask is not None else x

    def features(self, theta: Tensor, rows: slice) -> Tensor:
        """Features, expected at theta if they depend on it, and a one, last, over (n or 1, K or 1, E, S + 1)."""
        x = self.data(rows)
        if self.is_augmented:
            t = cast(Augmented, self.family).augment(x, **self.args(theta, rows)).movedim(0, -1)
        else:
            rank = self.family.rank
            t = self.family.features(x.movedim(list(range(3, 3 + rank)), list(range(rank)))).movedim(0, -1)
        return torch.cat([t, torch.ones_like(t[..., :1])], -1)

    def table(self, theta: Tensor, rows: slice) -> Tensor:
        """Log-densities without the base measure of observations, shape (n or 1, K or 1)."""
        args = self.args(theta, rows)
        if self.is_augmented:
            density = cast(Augmented, self.family).log_prob(self.data(rows), **args)
        else:
            features, coefficients = self.features(theta, rows), self.family.coefficients(**args)
            density = torch.einsum("nkes,nkes->nke", features, coefficients)
        if self.x.shape[1] > 1:
            density = density + self.base_measure(rows)
        return self.masked(density, rows).sum(-1)

    def base_measure(self, rows: slice) -> Tensor:
        """What no argument touches, over (n or 1, K or 1, E)."""
        x, rank = self.data(rows), self.family.rank
        return self.family.base_measure(x.movedim(list(range(3, 3 + rank)), list(range(rank))))

    def masked(self, values: Tensor, rows: slice) -> Tensor:
        """Zero where the density does not count, more where it counts several times."""
        values = values if self.multiplicity is None else values * self.multiplicity
        if self.mask is None:
            return values
        return torch.where(self.mask if self.mask.shape[0] == 1 else self.mask[rows], values, 0.0)


def element_factor(
    site: ProbedSite, family: Family, coordinates: Coordinates, weights: Mapping[str, Tensor]
) -> ElementFactor:
    """Arrange a probed site, under a family that serves its data, into rows, states and elements."""
    parts = site.parts
    assert isinstance(parts, SiteParts)
    own = {p for v in parts.scope for p in v.plates}
    plates = tuple(p for p in parts.plates if p in own)
    ranks = {a.name: a.rank for a in parts.family.args}
    leading = {n: _leading(r) for n, r in site.routes.items()}
    elements = element_shape(parts, [t for t in leading.values() if t is not None])
    return ElementFactor(
        name=site.name,
        family=family,
        coordinates=coordinates,
        plates=plates,
        scope=parts.scope,
        x=grouped(parts, parts.data, parts.family.rank, plates, elements),
        mask=None if parts.mask is None else grouped(parts, parts.mask, 0, plates, elements),
        active=active_rows(parts, plates),
        own=parts.own,
        multiplicity=multiplicity(parts, plates, elements, weights),
        stack=parts.stack,
        routes={
            n: _route(r, parts, ranks[n], plates, elements, len(coordinates.owner())) for n, r in site.routes.items()
        },
    )


def _leading(route: object) -> Tensor | None:
    if isinstance(route, Selected):
        return route.index
    return route.offset if isinstance(route, Affine) else None


def _route(
    route: object, parts: SiteParts, rank: int, plates: tuple[Plate, ...], elements: tuple[int, ...], start: int
) -> ElementRoute:
    if isinstance(route, Affine):
        return ElementRoute(
            link=route.link,
            columns=route.columns,
            design=grouped(parts, route.design, rank + 1, plates, elements),
            offset=grouped(parts, route.offset, rank, plates, elements),
        )
    assert isinstance(route, Selected)
    index = torch.where(route.index < 0, start - 1 - route.index, route.index)
    return ElementRoute(route.link, grouped(parts, index, rank, plates, elements), route.constants)
