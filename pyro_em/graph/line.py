"""The plainest chains: one latent a frame, all of one size, and nothing shared by all frames.

Their tables are the potentials put side by side, so that the gradient of the log evidence in each potential is read off
the smoothed chain directly: the numbers of :meth:`~pyro_em.graph.wiring.Wiring.smooth` without a tape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.chains import ChainTables, Smoothed, backward, forward
from pyro_em.graph.wiring import Place, Wiring

__all__ = ["Line", "line_of"]


@dataclass(frozen=True)
class Line:
    """How potentials make up such a chain.

    Attributes:
        wiring: the chain.
        spans: for each potential within frames, the widest first, its frames where they follow each other; ``None``
            where they do not.
    """

    wiring: Wiring
    spans: dict[int, slice | None]

    def smooth(
        self, potentials: Sequence[Tensor], weights: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`~pyro_em.graph.wiring.Wiring.smooth`."""
        tables = ChainTables(self._emission(potentials), self._transition(potentials), self.wiring.which, lengths)
        filtered = forward(tables)
        if float(filtered.log_evidence.max()) == -torch.inf:
            return filtered.log_evidence, []
        found = backward(filtered, weights)
        return filtered.log_evidence, [self._share(i, found, p) for i, p in enumerate(potentials)]

    def _emission(self, potentials: Sequence[Tensor]) -> Tensor:
        frames = self.wiring.frames
        shape = frames.num_rows, len(frames.frames), frames.num_states
        total: Tensor | None = None
        for i, span in self.spans.items():
            own = potentials[i]
            if total is None and span is not None and span.stop - span.start == shape[1]:
                total = own.expand(shape).clone(memory_format=torch.contiguous_format)
                continue
            total = own.new_zeros(shape) if total is None else total
            if span is None:
                at = self.wiring.places[i].frames
                total.index_add_(1, at, own.expand(shape[0], len(at), -1))
            else:
                total[:, span] += own
        return torch.zeros(shape, dtype=torch.float64) if total is None else total

    def _transition(self, potentials: Sequence[Tensor]) -> Tensor:
        """Shape (R or 1, M, S, S)."""
        total: Tensor | None = None
        for i, (target, source) in self.wiring.picks.items():
            own = _turned(potentials[i], self.wiring.places[i])
            own = own if own.shape[1] == 1 == len(source) else own[:, source]
            if len(target) < self.wiring.num_transitions:
                full = own.new_zeros(own.shape[0], self.wiring.num_transitions, *own.shape[2:])
                own = full.index_add_(1, target, own)
            total = own if total is None else total + own
        assert total is not None
        return total

    def _share(self, i: int, found: Smoothed, potential: Tensor) -> Tensor:
        """The gradient in one potential, of its shape."""
        place = self.wiring.places[i]
        if place.crosses:
            target, source = self.wiring.picks[i]
            pairs = found.pairwise if len(target) == self.wiring.num_transitions else found.pairwise[:, target]
            if not place.alike:
                shape = pairs.shape[0], len(place.frames), *pairs.shape[2:]
                pairs = pairs.new_zeros(shape).index_add_(1, source, pairs)
            return _summed(_turned(pairs, place), potential)
        span = self.spans[i]
        own = found.marginal[:, place.frames] if span is None else found.marginal[:, span]
        return _summed(own, potential)


def line_of(wiring: Wiring) -> Line | None:
    """The chain as a line; ``None`` where it is none."""
    frames = wiring.frames
    if frames.hubs or wiring.padding is not None or not wiring.picks or any(len(f) > 1 for f in frames.frames):
        return None
    within = [i for i, place in enumerate(wiring.places) if not place.crosses]
    within.sort(key=lambda i: -len(wiring.places[i].frames))
    return Line(wiring, {i: _span(wiring.places[i].frames) for i in within})


def _span(at: Tensor) -> slice | None:
    start = int(at[0])
    return slice(start, start + len(at)) if torch.equal(at, torch.arange(start, start + len(at))) else None


def _turned(table: Tensor, place: Place) -> Tensor:
    """From the order of the scope to (before, after), or back."""
    return table if place.axes[0][0] == 2 else table.mT


def _summed(full: Tensor, like: Tensor) -> Tensor:
    """Summed over the rows and frames that share one potential."""
    own, whole = like.shape, full.shape
    if own == whole:
        return full
    return full.sum([axis for axis in (0, 1) if own[axis] < whole[axis]], keepdim=True)
