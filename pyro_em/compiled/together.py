"""All arguments of sites by element at once, where taken in turn they would creep: a Gamma's rate and its shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

from pyro_em.compiled.collapse import collapsed
from pyro_em.compiled.elements import ElementFactor, ElementRoute
from pyro_em.compiled.pieces import Held, Pieces
from pyro_em.compiled.pooled import Pooled
from pyro_em.compiled.priors import Prior, log_prior
from pyro_em.compiled.shared import coordinates_of, within
from pyro_em.compiled.sharp import SHARP, concentrations
from pyro_em.compiled.solve import Guard
from pyro_em.families import Argument
from pyro_em.families.coupled import Elements, Reach, newton_coupled
from pyro_em.families.newton import NEGLIGIBLE, REAL
from pyro_em.probing import LINKS, Coordinates
from pyro_em.probing.affine import PREDICTORS

__all__ = ["Together", "elementwise"]


def elementwise(constraint: Any) -> Any:
    """The constraint of each element; ``None`` where elements are bound to each other."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    try:
        transform = transform_to(constraint)
    except NotImplementedError:
        return None
    return constraint if transform.domain.event_dim == transform.codomain.event_dim == 0 else None


@dataclass(frozen=True)
class Together:
    """The arguments of the sites of one family.

    Attributes:
        kind: the family.
        params: what moves.
        affine: by argument, the columns of theta that move behind it.
        closed: arguments that are selections.
        coordinates: of all parameters.
        priors: of those that move.
    """

    kind: Any
    params: frozenset[str]
    affine: Mapping[str, Tensor]
    closed: tuple[Pooled, ...]
    coordinates: Coordinates
    priors: Mapping[str, Prior]

    def maximise(self, theta: Tensor, pieces: Pieces, guard: Guard) -> Tensor:
        """theta at the maximum of Q over all of them.

        Raises:
            DegenerateError: concentrations went beyond all limits, under a guard that does not floor.
        """
        moved = self._climbed(theta, pieces, self._top)
        if guard.floor and set(concentrations(self.kind)) <= {p.key[1] for p in self.closed}:
            top = self._held(moved, pieces)
            return moved if torch.equal(top, self._top) else self._climbed(theta, pieces, top)
        for pooled in self.closed if not guard.floor else ():
            pooled.refuse_sharp(moved, pieces, guard)
        for argument in self.affine.keys() & set(concentrations(self.kind)):
            self._refuse_sharp(argument, moved, pieces, guard)
        return moved

    def _refuse_sharp(self, argument: str, theta: Tensor, pieces: Pieces, guard: Guard) -> None:
        """See that no concentration behind coefficients is beyond all limits: these cannot be held one by one.

        Raises:
            DegenerateError: one is, of an element that holds data.
        """
        for piece in pieces:
            for f in self.of(piece.factors):
                route, counts, args = f.routes[argument], piece.stats[f.name][..., -1], f.args(theta, slice(None))
                lowest = torch.stack(torch.broadcast_tensors(*(args[n] for n in concentrations(self.kind)))).amin(0)
                sharp = (lowest >= SHARP[guard.dtype]) & (counts > NEGLIGIBLE)
                if not route.is_affine or not bool(sharp.any()):
                    continue
                assert route.design is not None and route.columns is not None
                at = sharp.nonzero()[0]
                row = route.design.expand(*sharp.shape, -1)[tuple(at)]
                element, value = int(route.columns[row.abs().argmax()]), float(lowest.expand(sharp.shape)[tuple(at)])
                count = float(counts[sharp].sum())
                raise collapsed(self.kind.__name__, argument, element, value, count, guard.coordinates, "rose")

    def _climbed(self, theta: Tensor, pieces: Pieces, top: Tensor) -> Tensor:
        def prior(at: Tensor) -> Tensor:
            return log_prior(self.priors, self.coordinates, self._written(theta, at))

        elements: Callable[[], Iterable[Elements]] = partial(self._elements, pieces, theta)
        if isinstance(pieces, Held):
            elements = partial(tuple, tuple(elements()))  # those of the first pass serve all
        known = prior if self.priors else None
        found = newton_coupled(elements, self._start(theta), self._free, top, self._values, known)
        return self._written(theta, found) if bool(torch.isfinite(found).all()) else theta

    def _held(self, moved: Tensor, pieces: Pieces) -> Tensor:
        """How far coordinates may go where concentrations have gone beyond their ceiling."""
        top, at = self._top.clone(), len(self._columns)
        for pooled in self.closed:
            highest = pooled.ceilings(moved, pieces).log()
            top[at : at + len(highest)] = top[at : at + len(highest)].minimum(highest)
            at += len(highest)
        return top

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self._columns) + sum(len(p.movable) for p in self.closed)

    @cached_property
    def _columns(self) -> Tensor:
        """Positions in theta of the first coordinates."""
        return torch.cat([torch.zeros(0, dtype=torch.long), *self.affine.values()])

    @cached_property
    def _forms(self) -> dict[str, Argument]:
        return {a.name: a for a in self.kind.args}

    @cached_property
    def _free(self) -> Tensor:
        """Whether a coordinate is that of an argument without bounds, or a coefficient."""
        coefficients = torch.cat(
            [torch.zeros(0, dtype=torch.bool), *(torch.full((shape.numel(),), c in REAL) for c, shape in self._bounds)]
        )
        return torch.cat([coefficients, torch.zeros(len(self._top) - len(coefficients), dtype=torch.bool)])

    @cached_property
    def _bounds(self) -> list[tuple[Any, torch.Size]]:
        """The constraints of the parameters behind the first coordinates, with their shapes."""
        owner, names = self.coordinates.owner()[self._columns], list(self.coordinates.shapes)
        own = [names[i] for i in torch.unique_consecutive(owner).tolist()]
        shapes = self.coordinates.shapes
        return [(elementwise(self.coordinates.constraints[n]), torch.Size(shapes[n])) for n in own]

    def _values(self, at: Tensor) -> Tensor:
        """Coefficients within their bounds; the coordinates of arguments are what they are reached by."""
        *parts, rest = at.split([*(shape.numel() for _, shape in self._bounds), len(at) - len(self._columns)])
        pairs = zip(self._bounds, parts, strict=True)
        return torch.cat([*(transform_to(c)(part.reshape(shape)).reshape(-1) for (c, shape), part in pairs), rest])

    @cached_property
    def _top(self) -> Tensor:
        own = [torch.full((len(p.movable),), math.log(self._forms[p.key[1]].largest)) for p in self.closed]
        return torch.cat([torch.full((len(self._columns),), torch.inf), *own]).to(torch.float64)

    def _start(self, theta: Tensor) -> Tensor:
        own = [coordinates_of(self._forms[p.key[1]], LINKS[p.key[2]].forward(theta[p.movable])) for p in self.closed]
        parts = theta[self._columns].split([shape.numel() for _, shape in self._bounds])
        coefficients = [
            part if c in REAL else within(transform_to(c).inv(part.reshape(shape)).reshape(-1))
            for (c, shape), part in zip(self._bounds, parts, strict=True)
        ]
        return torch.cat([*coefficients, *own])

    def _written(self, theta: Tensor, found: Tensor) -> Tensor:
        sizes = [len(self._columns), *(len(p.movable) for p in self.closed)]
        coefficients, *own = self._values(found).split(sizes)
        moved = theta.clone()
        moved[self._columns] = coefficients
        for pooled, at in zip(self.closed, own, strict=True):
            _, name, link = pooled.key
            values = LINKS[link].inverse(biject_to(self._forms[name].domain)(at))
            moved[pooled.movable] = torch.where(torch.isfinite(values), values, theta[pooled.movable])
        return moved

    def _elements(self, pieces: Pieces, theta: Tensor) -> Iterator[Elements]:
        rest = theta.clone()
        rest[self._columns] = 0.0
        for piece in pieces:
            for f in self.of(piece.factors):
                stats = piece.stats[f.name]
                shape = stats.shape[:3]
                reaches = {n: self._reach(n, f, r, shape, theta, rest) for n, r in f.routes.items()}
                yield Elements(f.family, stats.reshape(-1, stats.shape[-1]), reaches)

    def of(self, factors: Sequence[ElementFactor]) -> list[ElementFactor]:
        """Those of this family."""
        return [f for f in factors if type(f.family) is self.kind]

    def _reach(
        self, name: str, factor: ElementFactor, route: ElementRoute, shape: torch.Size, theta: Tensor, rest: Tensor
    ) -> Reach:
        every = slice(None)
        if route.is_affine:
            assert route.design is not None and route.columns is not None
            place = torch.full((len(theta),), -1)
            place[self._columns] = torch.arange(len(self._columns))
            own = place[route.columns]
            design = route.design[..., own >= 0].expand(*shape, -1).reshape(shape.numel(), -1)
            offset = route.predictor(rest, every).expand(shape).reshape(-1)
            return Reach(PREDICTORS[route.link][1], offset, columns=own[own >= 0], design=design)
        assert route.index is not None
        place, at = torch.full((len(theta) + 1,), -1), len(self._columns)
        for pooled in self.closed:
            if pooled.key[1:] == (name, route.link):
                place[pooled.movable] = at + torch.arange(len(pooled.movable))
            at += len(pooled.movable)
        chart = biject_to(self._forms[name].domain)
        value = route.value(factor.coordinates, theta, every)
        index = place[route.index.clamp_max(len(theta))]
        return Reach(chart, chart.inv(value).expand(shape).reshape(-1), index=index.expand(shape).reshape(-1))
