"""One site as tensors over rows, states and elements.

*Rows* are the joint elements of the plates that its latents live in, *states* the joint states of those latents,
*elements* everything else: inner plates and event dimensions, over which log-densities add up. A table over rows and
states is then features times coefficients, and expected statistics are the transposed product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
from pyro_em.graph import Plate, Variable
from pyro_em.probing import SiteParts, Stack

__all__ = ["TensorFactor", "active_rows", "element_shape", "grouped", "multiplicity", "tensor_factor"]


@dataclass(frozen=True, eq=False)
class TensorFactor:
    """A site, its cells and its data.

    Attributes:
        name: the site.
        book: whose cells it uses.
        plates: the plates of rows, outermost first.
        scope: the variables of states.
        x: data, shape (n or 1, K or 1, E, *event), not centred.
        cell: shape (n or 1, K or 1, E).
        mask: where the density counts, shape (n or 1, K or 1, E or 1); ``None``, everywhere.
        origin: what is taken off x, shape (E, *event); ``None`` for nothing.
        active: over rows, where any of the density counts; ``None``, everywhere.
        own: the variable that the site draws; ``None`` for an observation.
        multiplicity: how often each element counts, shape (E,), from weights of inner plates; ``None``, once.
        stack: of sites of a chain, where they sit; their time is then the last of ``plates``, if they differ.
    """

    name: str
    book: Book
    plates: tuple[Plate, ...]
    scope: tuple[Variable, ...]
    x: Tensor
    cell: Tensor
    mask: Tensor | None
    origin: Tensor | None
    active: Tensor | None
    own: Variable | None
    multiplicity: Tensor | None = None
    stack: Stack | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows n."""
        return prod(p.size for p in self.plates)

    @property
    def num_states(self) -> int:
        """Number of joint states K."""
        return prod(v.size for v in self.scope)

    @cached_property
    def num_features(self) -> int:
        """Number of sufficient statistics S of one element."""
        return len(self.book.family.features(torch.zeros([*self.x.shape[3:], 1], dtype=torch.float64)))

    @cached_property
    def entries(self) -> Tensor:
        """Where a dense factor's coefficients stand among those of its book, in one row: shape (K, S * E)."""
        return (self._starts.unsqueeze(1) + torch.arange(self.num_features).unsqueeze(-1)).flatten(1)

    @cached_property
    def counted(self) -> Tensor:
        """Where the last coefficients stand, by which counts are multiplied: shape (K, E)."""
        return self._starts + self.num_features

    @property
    def _starts(self) -> Tensor:
        return self.cell[0].expand(self.num_states, -1).contiguous() * (self.num_features + 1)

    @cached_property
    def width(self) -> int:
        """Columns of a dense factor's features, with its mask behind."""
        return self.num_features * self.x.shape[2] + (0 if self.mask is None else self.mask.shape[2])

    @property
    def is_dense(self) -> bool:
        """Whether a table is one matrix product: data vary over rows only, and cells over states only."""
        plain = self.x.shape[1] == 1 and self.cell.shape[0] == 1 and (self.mask is None or self.mask.shape[1] == 1)
        plain = plain and self.multiplicity is None
        return plain and self.x.shape[0] == self.num_rows > 1 and not self.is_augmented

    @property
    def is_augmented(self) -> bool:
        """Whether its features depend on its arguments."""
        return bool(getattr(self.book.family, "augmented", False))

    @property
    def is_constant(self) -> bool:
        """Whether all rows have the same table."""
        varying = [self.x, self.cell] if self.mask is None else [self.x, self.cell, self.mask]
        return all(t.shape[0] == 1 for t in varying)

    def part(self, tensor: Tensor, rows: slice) -> Tensor:
        """The rows of a tensor that has them, or the whole where all are alike."""
        return tensor if tensor.shape[0] == 1 else tensor[rows]

    def centred(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Data of shape (..., E, *event) about the origin; what is missing, at the origin."""
        x = x.to(dtype)
        if self.origin is not None:
            x = x - self.origin.to(dtype)
        return x.nan_to_num(0.0, 0.0, 0.0) if self.mask is not None else x


def tensor_factor(parts: SiteParts, book: Book, cell: Tensor, weights: Mapping[str, Tensor]) -> TensorFactor:
    """Arrange a site's parts, and which cell each of its elements uses, into rows, states and elements."""
    own = {p for v in parts.scope for p in v.plates}
    plates = tuple(p for p in parts.plates if p in own)
    family = book.family
    origin = book.origins.get(parts.name)
    elements = element_shape(parts, [cell])
    if origin is not None:
        origin = origin.expand([*elements[len(elements) - parts.events :], *origin.shape[parts.events :]])
        inner = elements[: len(elements) - parts.events]
        origin = origin.expand([*inner, *origin.shape]).reshape(prod(elements), *origin.shape[parts.events :])
    mask = parts.mask
    return TensorFactor(
        name=parts.name,
        book=book,
        plates=plates,
        scope=parts.scope,
        x=grouped(parts, parts.data, family.rank, plates, elements),
        cell=grouped(parts, cell, 0, plates, elements),
        mask=None if mask is None else grouped(parts, mask, 0, plates, elements),
        origin=origin,
        active=active_rows(parts, plates),
        own=parts.own,
        multiplicity=multiplicity(parts, plates, elements, weights),
        stack=parts.stack,
    )


def multiplicity(
    parts: SiteParts, plates: tuple[Plate, ...], elements: tuple[int, ...], weights: Mapping[str, Tensor]
) -> Tensor | None:
    """How often each element counts, from the weights of inner plates."""
    inner = [p for p in parts.plates if p not in plates]
    if not any(p.name in weights for p in inner):
        return None
    total = torch.ones(elements, dtype=torch.float64)
    for axis, plate in enumerate(inner):
        if plate.name in weights:
            weight = weights[plate.name].to(torch.float64)
            total = total * weight.reshape([-1 if i == axis else 1 for i in range(len(elements))])
    return total.reshape(-1)


def _inner(parts: SiteParts, plates: tuple[Plate, ...]) -> list[int]:
    return [i for i, p in enumerate(parts.plates) if p not in plates]


def element_shape(parts: SiteParts, others: Sequence[Tensor]) -> tuple[int, ...]:
    """Sizes of inner plates and event axes, over the data and whatever else has those axes."""
    own = {p for v in parts.scope for p in v.plates}
    inner = tuple(p.size for p in parts.plates if p not in own)
    start = len(parts.dims)
    events = tuple(max(t.shape[start + i] for t in (parts.data, *others)) for i in range(parts.events))
    return inner + events


def grouped(
    parts: SiteParts, tensor: Tensor, rank: int, plates: tuple[Plate, ...], elements: tuple[int, ...]
) -> Tensor:
    """From (*plates, *scope, *events, *block) to (rows, states, elements, *block), rows and states one where alike."""
    outer = [i for i, p in enumerate(parts.plates) if p in plates]
    inner = _inner(parts, plates)
    states = list(range(len(parts.plates), len(parts.dims)))
    events = list(range(len(parts.dims), len(parts.dims) + parts.events))
    block = list(range(tensor.dim() - rank, tensor.dim()))
    tensor = tensor.permute([*outer, *states, *inner, *events, *block])
    a, b, c = len(outer), len(outer) + len(states), len(outer) + len(states) + len(inner) + len(events)
    sizes = list(tensor.shape)
    full_rows = [p.size for p in plates] if any(s > 1 for s in sizes[:a]) else [1] * a
    full_states = [v.size for v in parts.scope] if any(s > 1 for s in sizes[a:b]) else [1] * (b - a)
    tensor = tensor.expand([*full_rows, *full_states, *elements, *sizes[c:]])
    return tensor.reshape(prod(full_rows), prod(full_states), prod(elements), *sizes[c:])


def active_rows(parts: SiteParts, plates: tuple[Plate, ...]) -> Tensor | None:
    """Over rows: whether any element of the observation counts."""
    if parts.mask is None:
        return None
    over = [i for i in range(parts.mask.dim()) if i >= len(parts.plates) or parts.plates[i] not in plates]
    active = parts.mask
    for axis in sorted(over, reverse=True):
        active = active.any(axis)
    return active.expand([p.size for p in plates]).reshape(-1)
