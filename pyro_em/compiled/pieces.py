"""Sites by element and the posteriors of their states, over data in memory or batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from pyro_em.compiled.elements import ElementFactor

__all__ = ["Held", "InMemory", "Piece", "Pieces"]


@dataclass(frozen=True)
class Piece:
    """Sites by element over some of the data.

    Attributes:
        factors: the sites.
        weights: by site, posterior of the states times the datum's weight, shape (n, K).
        theta: where that was found.
    """

    factors: tuple[ElementFactor, ...]
    weights: Mapping[str, Tensor]
    theta: Tensor

    @cached_property
    def stats(self) -> dict[str, Tensor]:
        """By site, expected features and counts of every element, shape (n, K, E, S + 1)."""
        return {f.name: _statistics(f, self.weights[f.name], self.theta) for f in self.factors}

    @property
    def size(self) -> int:
        """How many numbers designs and statistics are made of, about."""
        designs = sum(r.design.numel() for f in self.factors for r in f.routes.values() if r.design is not None)
        return designs + sum(s.numel() for s in self.stats.values())


class Pieces(Protocol):
    """All data, one piece after another, as often as they are gone through."""

    def __iter__(self) -> Iterator[Piece]:
        """One pass."""
        ...

    def held(self) -> Pieces:
        """The same for several passes: what fits in memory stays there."""
        ...


@dataclass(frozen=True)
class InMemory:
    """All data as one piece."""

    factors: tuple[ElementFactor, ...]
    weights: Mapping[str, Tensor]
    theta: Tensor

    def __iter__(self) -> Iterator[Piece]:
        yield Piece(self.factors, self.weights, self.theta)

    def held(self) -> Pieces:
        """Statistics are made once."""
        return Held(tuple(self))


@dataclass(frozen=True)
class Held:
    """Pieces that are in memory together."""

    pieces: Sequence[Piece]

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)

    def held(self) -> Pieces:
        """They are."""
        return self


def _statistics(factor: ElementFactor, weights: Tensor, theta: Tensor) -> Tensor:
    t = factor.features(theta, slice(None))
    t = t.expand(factor.num_rows, factor.num_states, -1, -1)
    weights = weights[:, :, None].expand(-1, -1, t.shape[2])
    return t * factor.masked(weights, slice(None)).unsqueeze(-1)
