"""EM over data in batches: one pass accumulates what full data would, whatever the size of a batch.

Statistics of batches add up, so the M-step is that of all data; memory is bounded by one batch. Each batch is run once
per pass, to get at its data, and compared with what probing found out on the first. Regressions go through the batches
several times in an M-step, once for every sum that Newton's method needs, with the posteriors made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from pyro_em.compiled import Expectation, TensorModel
from pyro_em.compiled.model import assemble
from pyro_em.compiled.pieces import Held, Piece, Pieces
from pyro_em.compiled.point import Values
from pyro_em.em.shares import Share, Stream, may_be_held
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention
from pyro_em.graph.build import datum_weights, site_scale
from pyro_em.graph.factor import together
from pyro_em.params import ParamSpace
from pyro_em.probing import Affine, Coordinates, Probed, ProbedSite, SiteParts, probe
from pyro_em.probing.reread import are_explained, are_of_a_kind, reread
from pyro_em.probing.runs import Run, run
from pyro_em.probing.sites import as_independent
from pyro_em.probing.trim import trimmed

__all__ = ["BatchedModel", "Passes"]


@dataclass(frozen=True, eq=False)
class BatchedModel:
    """A compiled model over a stream of data; what :class:`~pyro_em.compiled.TensorModel` is over data in memory.

    Attributes:
        first: the model of the first batch, whose books serve all.
        probed: what was found out on the first batch.
        stream: the data.
        space: the parameters.
        at: their unconstrained values at which batches are read.
    """

    first: TensorModel
    probed: Probed
    stream: Stream
    space: ParamSpace
    at: dict[str, Tensor]

    @property
    def coordinates(self) -> Coordinates:
        """What theta's elements are."""
        return self.first.coordinates

    @property
    def dtype(self) -> torch.dtype:
        """The least exact arithmetic among the E-steps."""
        return self.first.dtype

    def __getattr__(self, name: str) -> Any:
        """Books, factors and the like: those of the first batch."""
        return getattr(self.first, name)

    def fits(self) -> bool:
        """Whether probing the first batch explains all batches."""
        return all(self._explains(share) for share in self.stream)

    def expect(self, theta: Tensor, known: Values | None = None) -> Expectation:
        """The E-step at theta, summed over batches; ``known`` are values there of some of the books."""
        total: Expectation | None = None
        for share in self.stream:
            found = self.of(share).expect(theta, known)
            total = found if total is None else total + found
        assert total is not None
        return replace(total, pieces=Passes(partial(self._pieces, theta)))

    def of(self, share: Share) -> TensorModel:
        """The model of one batch."""
        read = self._read(share)
        parts = self._parts(read)
        assert parts is not None
        sites = [reread(s, parts[n], read, self.coordinates) for n, s in self._known.items()]
        nodes = read.found.sites
        scales = {s.name: site_scale(s.name, nodes[s.members[0]]) for s in sites}
        own = datum_weights({n: nodes[n] for s in self.probed.sites.values() for n in s.members})
        weights = together(own, share.weights)
        return assemble([trimmed(s) for s in sites], self.first.books, self.coordinates, scales, weights)

    def _pieces(self, theta: Tensor) -> Iterator[Piece]:
        """Each batch's sites by element, with their posteriors at theta."""
        for share in self.stream:
            yield from self.of(share).expect(theta).pieces

    @cached_property
    def _known(self) -> dict[str, ProbedSite]:
        """The sites that are tensors."""
        names = {f.name for f in self.first.factors}
        return {n: s for n, s in self.probed.sites.items() if n in names}

    def _explains(self, share: Share) -> bool:
        """Whether this batch's arguments are what the first's routes say."""
        read, known = self._read(share), self._known
        parts = self._parts(read)
        if parts is None:
            return False
        if not all(are_explained(parts[n], s.routes, self.coordinates, read.theta) for n, s in known.items()):
            return False
        if not self._has_designs:
            return True
        try:
            own = probe(share.inference.program, self.space, share.args, share.kwargs, Intervention()).sites
        except ModelError:
            return False
        return all(n in own and are_of_a_kind(own[n], s, self.coordinates) for n, s in known.items())

    @cached_property
    def _has_designs(self) -> bool:
        return any(isinstance(r, Affine) for s in self._known.values() for r in s.routes.values())

    def _read(self, share: Share) -> Run:
        """A run at the parameters that the model was compiled at: a predictor stays within range there."""
        here = self.space.snapshot()
        self.space.restore(self.at)
        program, data = share.inference.program, (share.args, share.kwargs)
        look, piles = Intervention(), self.probed.piles
        try:
            return run(program, self.space, self.coordinates, data, look, self._has_designs, piles)
        finally:
            self.space.restore(here)

    def _parts(self, read: Run) -> dict[str, SiteParts] | None:
        """The known sites of a run taken apart; ``None`` where they are others than the first batch's."""
        found = {}
        for name, known in self._known.items():
            parts = read.parts.get(name, "") if name in self.probed.piles else ""
            if not isinstance(parts, SiteParts) or not isinstance(known.parts, SiteParts):
                return None
            if type(parts.family) is not type(known.parts.family):
                (parts,) = as_independent([parts])
            if type(parts.family) is not type(known.parts.family):
                return None
            found[name] = parts
        return found


@dataclass(frozen=True)
class Passes:
    """Sites by element of all batches. Where these are large, one is in memory at a time, and every pass makes them and
    their posteriors anew.

    Attributes:
        again: makes one pass.
    """

    again: Callable[[], Iterator[Piece]]

    def __iter__(self) -> Iterator[Piece]:
        return self.again()

    def held(self) -> Pieces:
        """The same in memory, if there are few numbers in all."""
        found, size = [], 0
        for piece in self:
            found.append(piece)
            size += piece.size
            if not may_be_held(size):
                return self
        return Held(tuple(found))
