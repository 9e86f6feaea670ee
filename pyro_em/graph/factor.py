"""A model as a factor graph with plates: variables, plates, and log-tables over both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyro_em.graph.hidden import Hidden

__all__ = ["Dim", "Factor", "FactorGraph", "Plate", "Prior", "Variable", "row_weights", "together"]


@dataclass(frozen=True)
class Plate:
    """``size`` conditionally independent copies."""

    name: str
    size: int

    def __hash__(self) -> int:
        return hash(self.name)  # enough to tell most apart, and kept with the string


@dataclass(frozen=True)
class Variable:
    """A discrete latent with ``size`` states, one copy for every element of its ``plates`` (outermost first)."""

    name: str
    size: int
    plates: tuple[Plate, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)


Dim = Plate | Variable


@dataclass(frozen=True)
class Factor:
    """The log-density of one sample site as a table.

    Attributes:
        name: the sample site.
        plates: plates of the site, outermost first.
        scope: variables the density depends on.
        table: float64, of shape (*plate sizes, *variable sizes).
        scale: the site's scalar ``poutine.scale``, applied outside the sum over states.
        active: for an observation under a mask, over the plates: where it counts; ``None``, everywhere.
    """

    name: str
    plates: tuple[Plate, ...]
    scope: tuple[Variable, ...]
    table: Tensor
    scale: float = 1.0
    active: Tensor | None = None

    @property
    def dims(self) -> tuple[Dim, ...]:
        """What each axis of the table stands for."""
        return self.plates + self.scope


@dataclass(frozen=True)
class HiddenSite:
    """A site with a chain of its own, over ``plates``; ``chain`` evaluates its potentials."""

    plates: tuple[Plate, ...]
    chain: Callable[[], Hidden]

    def weights(self, by_plate: Mapping[str, Tensor]) -> Tensor:
        """How often each row of the chain counts, shape (R,)."""
        found = row_weights(self.plates, by_plate)
        return torch.ones(prod(p.size for p in self.plates), dtype=torch.float64) if found is None else found


@dataclass(frozen=True)
class FactorGraph:
    """Factors, and what is needed to hand results back in the model's own shapes.

    Attributes:
        factors: densities of latents and observations.
        priors: point-estimated latents by site.
        variables: by site name.
        layout: for each variable, how its values look in the model.
        weights: by plate, how often each of its elements counts; a weight of two is an element that is there twice.
        hidden: ``DiscreteHMM`` sites, whose chains are summed out within the site's own table.
    """

    factors: tuple[Factor, ...]
    priors: dict[str, Prior]
    variables: dict[str, Variable]
    layout: dict[str, Layout]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Mapping[str, HiddenSite] = field(default_factory=dict)

    @property
    def tables(self) -> list[Tensor]:
        """The log-tables, in the order of the factors."""
        return [factor.table for factor in self.factors]

    def with_tables(self, tables: Iterable[Tensor]) -> FactorGraph:
        """The same graph over other log-tables."""
        factors = tuple(replace(f, table=t) for f, t in zip(self.factors, tables, strict=True))
        return replace(self, factors=factors)

    def with_factors(self, *extra: Factor) -> FactorGraph:
        """The same graph with further factors at the end."""
        return replace(self, factors=self.factors + extra)

    def evaluated(self) -> FactorGraph:
        """The same graph with hidden chains evaluated: parameters that they still refer to are about to move."""
        found = {n: replace(h, chain=partial(_identity, h.chain())) for n, h in self.hidden.items()}
        return replace(self, hidden=found)

    def only(self, positions: Iterable[int]) -> FactorGraph:
        """The same graph with the factors at these positions alone."""
        return replace(self, factors=tuple(self.factors[i] for i in positions))

    def counted(self, weights: Mapping[str, Tensor]) -> FactorGraph:
        """The same graph with further weights of plates beside its own."""
        return replace(self, weights=together(self.weights, weights))

    def log_prior(self) -> Tensor:
        """Total log-density of the point-estimated latents, in nats."""
        return torch.stack([*(p.log_prob for p in self.priors.values()), torch.zeros((), dtype=torch.float64)]).sum()


def _identity(chain: Hidden) -> Hidden:
    return chain


def row_weights(plates: Sequence[Plate], by_plate: Mapping[str, Tensor]) -> Tensor | None:
    """How often each joint element of some plates counts, float64, shape (product of sizes,); ``None`` for once."""
    if not any(p.name in by_plate for p in plates):
        return None
    total = torch.ones([p.size for p in plates], dtype=torch.float64)
    for axis, plate in enumerate(plates):
        if plate.name in by_plate:
            weight = by_plate[plate.name].to(torch.float64)
            total = total * weight.reshape([-1 if i == axis else 1 for i in range(total.dim())])
    return total.reshape(-1)


def together(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The product of two sets of weights by plate."""
    return {**one, **{n: w * one.get(n, 1.0) for n, w in other.items()}}


@dataclass(frozen=True)
class Prior:
    """A point-estimated latent: its total log-density in nats, and the shape it has in the model.

    Attributes:
        log_prob: float64 scalar.
        plates: its plates by negative batch dimension.
        event_dim: number of event dimensions.
    """

    log_prob: Tensor
    plates: dict[int, Plate]
    event_dim: int


@dataclass(frozen=True)
class Layout:
    """How the states of a variable look inside the model.

    Attributes:
        enumerated: the value that the model is given, with all states along ``axis``.
        plate_dims: the negative batch dimension of each of its plates, in the order of ``Variable.plates``.
        fn: the site's distribution, for its type.
    """

    enumerated: Tensor
    axis: int
    plate_dims: tuple[int, ...]
    fn: Any

    @cached_property
    def support(self) -> Tensor:
        """The values of its states, shape (size, *event_shape)."""
        rows = self.enumerated.movedim(self.axis, 0)
        event = rows.shape[rows.dim() - self.fn.event_dim :]
        return rows.reshape(len(rows), -1, *event)[:, 0]

    def to_model(self, table: Tensor, trailing: int = 0) -> Tensor:
        """Move plate axes of ``table`` (leading axes, plates, ``trailing`` axes) to where the model has them.

        Plates the model keeps at dim -2, say, get a singleton to their right, as in the model's own values.
        """
        n = len(self.plate_dims)
        lead = table.dim() - n - trailing
        order = sorted(range(n), key=lambda i: self.plate_dims[i])
        table = table.permute([*range(lead), *(lead + i for i in order), *range(lead + n, table.dim())])
        rank = -min(self.plate_dims, default=0)
        shape = [1] * rank
        for i in order:
            shape[self.plate_dims[i]] = table.shape[lead + order.index(i)]
        return table.reshape([*table.shape[:lead], *shape, *table.shape[lead + n :]])

    def states(self, value: Tensor) -> Tensor:
        """State numbers, over the variable's plates, of a value in the model's shape."""
        event = self.support.dim() - 1
        batch = value.dim() - event
        support = self.support.reshape(-1, *[1] * batch, *self.support.shape[1:])
        hit = (value.unsqueeze(0) == support).flatten(1 + batch).all(-1) if event else value.unsqueeze(0) == support
        index = hit.long().argmax(0)
        own = [batch + dim for dim in self.plate_dims]
        index = index.permute([*own, *(i for i in range(batch) if i not in own)])
        return index.reshape(index.shape[: len(own)])

    def values(self, index: Tensor) -> Tensor:
        """State numbers (leading axes, plates) as values in the model's shape (leading axes, batch, event)."""
        return self.support[self.to_model(index)]
