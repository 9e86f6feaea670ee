"""EM over data in batches: one pass accumulates what full data would, whatever the size of a batch.

Statistics of batches add up, so the M-step is that of all data; memory is bounded by one batch. Each batch is run once
per pass, to get at its data, and compared with what probing found out on the first. Regressions go through the batches
several times in an M-step, once for every sum that Newton's method needs, with the posteriors made anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_em.compiled import Expectation, TensorModel
from pyro_em.compiled.model import assemble
from pyro_em.compiled.pieces import Held, Piece, Pieces
from pyro_em.compiled.point import Values
from pyro_em.data import Batch, Batches
from pyro_em.em.checks import Prepared
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, Program
from pyro_em.graph.build import datum_weights, plates_of, site_scale, structure
from pyro_em.graph.factor import together
from pyro_em.params import ParamSpace
from pyro_em.probing import Affine, Coordinates, Probed, SiteParts, probe
from pyro_em.probing.reread import are_explained, are_of_a_kind, reread
from pyro_em.probing.runs import Run, run
from pyro_em.probing.sites import as_independent
from pyro_em.probing.trim import trimmed

__all__ = ["BatchedModel", "Stream", "open_stream"]

MAX_HELD = 2**21  # numbers, 16 MB


@dataclass(frozen=True)
class Stream:
    """The data of a fit, batch by batch.

    Attributes:
        batches: the caller's data.
        plates: names of the plates that grow with a batch.
        weights: how often each datum counts, by plate, of all data.
    """

    batches: Batches
    plates: frozenset[str]
    weights: Mapping[str, Tensor]

    def __iter__(self) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        """Every batch once, in order, with the weights of its data."""
        at = 0
        for batch in self.batches.in_order():
            rows = slice(at, at := at + batch.size)
            yield batch, {n: w[rows] if n in self.plates else w for n, w in self.weights.items()}


def open_stream(batches: Batches, prepared: Prepared, weights: Mapping[str, Tensor]) -> Stream:
    """Find the plates that hold a batch.

    Raises:
        ModelError: a density outside of them, which every batch would count anew.
    """
    program, first = prepared.inference.program, next(batches.in_order())
    small, large = (_plates(program, prepared, b) for b in (first, first.one_row_more()))
    growing = frozenset(n for n in large["sizes"] if large["sizes"][n] != small["sizes"].get(n))
    for name, inside in small["sites"].items():
        if name not in program.priors and not growing & set(inside):
            raise ModelError(
                f"Site {name!r} lies outside the plates that hold a batch, so every batch would count it again. Put "
                "it into the data's plate, or fit without batch_size and DataLoader."
            )
    return Stream(batches, growing, weights)


def _plates(program: Program, prepared: Prepared, batch: Batch) -> dict[str, Any]:
    intervention = Intervention(given=prepared.intervention.given)
    with torch.no_grad(), pyro.validation_enabled(False):
        trace = program.trace(batch.args, batch.kwargs, intervention)
    sites = structure(trace, program.ignored).sites
    plates = {n: list(plates_of(s, s["fn"].batch_shape).values()) for n, s in sites.items()}
    return {
        "sizes": {p.name: p.size for found in plates.values() for p in found},
        "sites": {n: [p.name for p in found] for n, found in plates.items()},
    }


@dataclass(frozen=True, eq=False)
class BatchedModel:
    """A compiled model over a stream of data; what :class:`~pyro_em.compiled.TensorModel` is over data in memory.

    Attributes:
        first: the model of the first batch, whose books serve all.
        probed: what was found out on the first batch.
        stream: the data.
        program, space: run on each batch.
        at: the parameters at which they are.
    """

    first: TensorModel
    probed: Probed
    stream: Stream
    program: Program
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
        return all(self._explains(batch) for batch, _ in self.stream)

    def expect(self, theta: Tensor, known: Values | None = None) -> Expectation:
        """The E-step at theta, summed over batches; ``known`` are values there of some of the books."""
        total: Expectation | None = None
        for batch, weights in self.stream:
            found = self._model(batch, weights).expect(theta, known)
            total = found if total is None else total + found
        assert total is not None
        return replace(total, pieces=_Pieces(self, theta))

    def pieces(self, theta: Tensor) -> Iterator[Piece]:
        """Each batch's sites by element, with their posteriors at theta."""
        for batch, weights in self.stream:
            yield from self._model(batch, weights).expect(theta).pieces

    def _model(self, batch: Batch, weights: Mapping[str, Tensor]) -> TensorModel:
        read = self._read(batch)
        parts = self._parts(read)
        assert parts is not None
        sites = [reread(s, parts[n], read, self.coordinates) for n, s in self.probed.sites.items()]
        nodes = read.found.sites
        scales = {s.name: site_scale(s.name, nodes[s.members[0]]) for s in sites}
        own = datum_weights({n: nodes[n] for s in sites for n in s.members})
        whole = together(own, weights)
        return assemble([trimmed(s) for s in sites], self.first.books, self.coordinates, scales, whole)

    def _explains(self, batch: Batch) -> bool:
        """Whether this batch's arguments are what the first's routes say."""
        read, known = self._read(batch), self.probed.sites
        parts = self._parts(read)
        if parts is None:
            return False
        if not all(are_explained(parts[n], s.routes, self.coordinates, read.theta) for n, s in known.items()):
            return False
        if not self._has_designs:
            return True
        try:
            own = probe(self.program, self.space, batch.args, batch.kwargs, Intervention()).sites
        except ModelError:
            return False
        return all(n in own and are_of_a_kind(own[n], s, self.coordinates) for n, s in known.items())

    @cached_property
    def _has_designs(self) -> bool:
        return any(isinstance(r, Affine) for s in self.probed.sites.values() for r in s.routes.values())

    def _read(self, batch: Batch) -> Run:
        """A run at the parameters that the model was compiled at: a predictor stays within range there."""
        here = self.space.snapshot()
        self.space.restore(self.at)
        look, data = Intervention(), (batch.args, batch.kwargs)
        try:
            return run(self.program, self.space, self.coordinates, data, look, self._has_designs, self.probed.piles)
        finally:
            self.space.restore(here)

    def _parts(self, read: Run) -> dict[str, SiteParts] | None:
        """The sites of a run taken apart; ``None`` where they are others than the first batch's."""
        found = {}
        for name, known in self.probed.sites.items():
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
class _Pieces:
    """Sites by element of all batches. Where these are large, one is in memory at a time, and every pass is an E-step
    anew.
    """

    model: BatchedModel
    theta: Tensor

    def __iter__(self) -> Iterator[Piece]:
        return self.model.pieces(self.theta)

    def held(self) -> Pieces:
        """The same in memory, if there are few numbers in all."""
        found, size = [], 0
        for piece in self:
            found.append(piece)
            size += piece.size
            if size > MAX_HELD:
                return self
        return Held(tuple(found))
