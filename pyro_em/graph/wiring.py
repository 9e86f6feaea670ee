"""From log-potentials of factors to the tables of a chain, by differentiable steps.

The gradient of a chain's log evidence in these potentials is again the posterior over each factor's clique, summed over
whatever a potential is shared by: a transition that all frames use gets its expected count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from pyro_em.chains import ChainTables, log_evidence
from pyro_em.graph.frames import Axes, Frames
from pyro_em.graph.logsumexp import logsumexp

__all__ = ["Place", "Wired", "Wiring", "wire"]


@dataclass(frozen=True)
class Place(Axes):
    """Where factors that sit alike put their potentials.

    Attributes:
        frames: the later frame of each factor, shape (n,).
        alike: whether one potential serves all n.
    """

    frames: Tensor
    alike: bool


@dataclass(frozen=True)
class Wired:
    """The tables of a chain over H * R rows, hub states outermost, and the potentials of the hubs, (H or 1, R or 1)."""

    tables: ChainTables
    hub: Tensor


@dataclass(frozen=True)
class Wiring:
    """How potentials add up to tables.

    Attributes:
        frames: the chain.
        places: of the potentials, in order.
        which: which transition leads from each frame to the next, shape (T - 1,).
        picks: for each potential that crosses frames, the transitions it is part of and which of its frames each takes.
        padding: zero, and -inf for states that a frame does not have, shape (T, S); ``None`` where all have them.
    """

    frames: Frames
    places: tuple[Place, ...]
    which: Tensor
    picks: dict[int, tuple[Tensor, Tensor]]
    padding: Tensor | None

    @cached_property
    def num_transitions(self) -> int:
        """Number of distinct transitions M."""
        return int(self.which.max()) + 1 if len(self.which) else 1

    def tables(self, potentials: Sequence[Tensor], lengths: Tensor | None = None) -> Wired:
        """The tables.

        Args:
            potentials: one for each place, shape (R or 1, n or 1, *sizes of its scope).
            lengths: how many frames of each row count, shape (R,).
        """
        rows, hubs = self.frames.num_rows, self.frames.num_hubs
        emission, transition = self._emission(potentials), self._transition(potentials)
        groups = transition.shape[:2]
        if groups[1] > 1 and groups[0] < hubs:
            transition = transition.expand(hubs, *transition.shape[1:])
        return Wired(
            ChainTables(
                emission.expand(hubs, rows, *emission.shape[2:]).flatten(0, 1),
                transition.flatten(0, 1),
                self.which,
                None if lengths is None else lengths.repeat(hubs),
            ),
            self._hub(potentials),
        )

    def log_evidence(self, potentials: Sequence[Tensor], lengths: Tensor | None = None) -> Tensor:
        """Log of the sum over all states, for each row, shape (R,)."""
        wired = self.tables(potentials, lengths)
        t = wired.tables
        by_hub = log_evidence(t.emission, t.transition, t.which, t.lengths)
        if not self.frames.hubs:
            return by_hub
        return logsumexp((by_hub.reshape(self.frames.num_hubs, -1) + wired.hub).T)

    def smooth(
        self, potentials: Sequence[Tensor], weights: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The log evidence of each row, (R,), and the gradients of its sum, weighted by row, in every potential.

        Where no row is possible there are no gradients.
        """
        leaves = [p.detach().requires_grad_() for p in potentials]
        with torch.enable_grad():
            rows = self.log_evidence(leaves, lengths)
        if bool((rows == -torch.inf).all()):
            return rows.detach(), []
        return rows.detach(), list(torch.autograd.grad(rows, leaves, weights))

    def _emission(self, potentials: Sequence[Tensor]) -> Tensor:
        """Shape (H or 1, R or 1, T, S)."""
        count, states = len(self.frames.frames), self.frames.num_states
        total: Tensor | None = self.padding
        for place, table in zip(self.places, potentials, strict=True):
            if place.is_hub or place.crosses:
                continue
            own = _arranged(table, place, self.frames)
            own = _padded(own, 1, states)
            if len(place.frames) < count:
                full = own.new_zeros(*own.shape[:2], count, states)
                own = full.index_add(2, place.frames, own.expand(-1, -1, len(place.frames), -1))
            total = own if total is None else total + own
        zeros = torch.zeros(1, 1, count, states, dtype=torch.float64)
        return zeros if total is None else torch.broadcast_tensors(total, zeros)[0]

    def _transition(self, potentials: Sequence[Tensor]) -> Tensor:
        """Shape (H or 1, R or 1, M, S, S)."""
        states, count = self.frames.num_states, self.num_transitions
        total: Tensor | None = None
        for i, (target, source) in self.picks.items():
            own = _padded(_arranged(potentials[i], self.places[i], self.frames), 2, states)
            if len(source) != own.shape[2] or len(source) > 1:
                own = own[:, :, source]
            if len(target) < count:
                full = own.new_zeros(*own.shape[:2], count, states, states)
                own = full.index_add(2, target, own)
            total = own if total is None else total + own
        return torch.zeros(1, 1, count, states, states, dtype=torch.float64) if total is None else total

    def _hub(self, potentials: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(1, 1, dtype=torch.float64)
        for place, table in zip(self.places, potentials, strict=True):
            if place.is_hub:
                total = total + _arranged(table, place, self.frames).expand(-1, -1, len(place.frames)).sum(2)
        return total


def wire(frames: Frames, places: Sequence[Place]) -> Wiring:
    """Find the distinct transitions of a chain."""
    steps = len(frames.frames) - 1
    crossing = [i for i, place in enumerate(places) if place.crosses]
    codes = torch.full((len(crossing), steps), -1, dtype=torch.long)
    for row, i in enumerate(crossing):
        at = places[i].frames
        codes[row, at - 1] = 0 if places[i].alike else torch.arange(len(at))
    distinct, which = _distinct_columns(codes)
    picks = {}
    for row, i in enumerate(crossing):
        target = (distinct[row] >= 0).nonzero().squeeze(-1)
        picks[i] = target, distinct[row, target]
    states = torch.tensor([prod(sizes) for sizes in frames.sizes])
    missing = torch.arange(frames.num_states) >= states.unsqueeze(-1)
    padding = torch.zeros(missing.shape, dtype=torch.float64).masked_fill(missing, -torch.inf)
    return Wiring(frames, tuple(places), which, picks, padding[None, None] if bool(missing.any()) else None)


def _distinct_columns(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The different columns in lexicographic order, and which of them each column is.

    Row by row: ``torch.unique`` along a dimension takes thirty times as long.
    """
    which = torch.zeros(codes.shape[1], dtype=torch.long)
    for row in codes:
        values, own = torch.unique(row, return_inverse=True)
        which = torch.unique(which * len(values) + own, return_inverse=True)[1]
    distinct = codes.new_zeros(len(codes), int(which.max()) + 1 if len(which) else 0)
    distinct[:, which] = codes
    return distinct, which


def _arranged(table: Tensor, place: Place, frames: Frames) -> Tensor:
    """From (R, n, *scope) to (H or 1, R, n, states of the frame before, if it crosses, states of the frame)."""
    at = int(place.frames[0])
    groups = [list(enumerate(v.size for v in frames.hubs))]
    groups += [list(enumerate(frames.sizes[at - 1]))] if place.crosses else []
    groups += [] if place.is_hub else [list(enumerate(frames.sizes[at]))]
    rows = [0, 2, 1] if place.crosses else [0, 1]
    seats = [(row, i, size) for row, group in zip(rows, groups, strict=False) for i, size in group]
    order = [2 + place.axes.index((row, i)) for row, i, _ in seats if (row, i) in place.axes]
    table = table.permute(0, 1, *order)
    hubs = any(row == 0 for row, _ in place.axes)
    shape = [size if (row, i) in place.axes else 1 for row, i, size in seats]
    full = [size if row > 0 or hubs else 1 for row, _, size in seats]
    table = table.reshape(*table.shape[:2], *shape).expand(*table.shape[:2], *full)
    sizes = [prod(size for _, size in group) for group in groups]
    sizes[0] = sizes[0] if hubs else 1
    return table.reshape(*table.shape[:2], *sizes).movedim(2, 0)


def _padded(table: Tensor, axes: int, states: int) -> Tensor:
    """Zeros for the states that a frame does not have."""
    if all(size == states for size in table.shape[table.dim() - axes :]):
        return table
    room = [states - size for size in reversed(table.shape[table.dim() - axes :])]
    return torch.nn.functional.pad(table, [n for size in room for n in (0, size)])
