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
from pyro_em.compiled.cells import located
from pyro_em.compiled.model import assemble, book_of
from pyro_em.compiled.pieces import Held, Piece, Pieces
from pyro_em.compiled.point import Values
from pyro_em.em.reading import Reader
from pyro_em.em.shares import Share, Stream, may_be_held
from pyro_em.graph.build import datum_weights, site_scale
from pyro_em.graph.factor import together
from pyro_em.probing import Coordinates, ProbedSite, Selected

__all__ = ["BatchedModel", "Passes"]


@dataclass(frozen=True, eq=False)
class BatchedModel:
    """A compiled model over a stream of data; what :class:`~pyro_em.compiled.TensorModel` is over data in memory.

    Attributes:
        first: the model of the first batch, whose books serve all.
        reader: reads the others.
        stream: the data.
    """

    first: TensorModel
    reader: Reader
    stream: Stream

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

    def expect(self, theta: Tensor, known: Values | None = None) -> Expectation:
        """The E-step at theta, summed over batches; ``known`` are values there of some of the books."""
        total: Expectation | None = None
        for share in self.stream:
            found = self.of(share).expect(theta, known)
            total = found if total is None else total + found
        assert total is not None
        return replace(total, pieces=Passes(partial(self._pieces, theta)))

    def of(self, share: Share) -> TensorModel:
        """The model of one batch.

        Raises:
            ModelError: the batch is not what it was in the pass before.
        """
        found, nodes = self.reader.sites(share)
        names = {f.name for f in self.first.factors}
        sites = [s for n, s in found.items() if n in names]
        scales = {s.name: site_scale(s.name, nodes[s.members[0]]) for s in sites}
        own = datum_weights({n: nodes[n] for s in self.reader.probed.sites.values() for n in s.members})
        cells = {s.name: self._cell(s) for s in sites if s.name in self.reader.union.sites}
        return assemble(sites, self.first.books, cells, self.coordinates, scales, together(own, share.weights))

    def _cell(self, site: ProbedSite) -> Tensor:
        """Where a site's elements stand among the cells of its book."""
        book = book_of(self.first.books, site.name)
        if site.name in self.reader.varying:
            return located(book, site, self.coordinates)
        # all batches have the same selections, but for axes of one that a batch of one row has lost
        key = site.name, tuple(r.index.shape for r in site.routes.values() if isinstance(r, Selected))
        if key not in self._cells:
            self._cells[key] = located(book, site, self.coordinates)
        return self._cells[key]

    @cached_property
    def _cells(self) -> dict[tuple[str, tuple[torch.Size, ...]], Tensor]:
        return {}

    def _pieces(self, theta: Tensor) -> Iterator[Piece]:
        """Each batch's sites by element, with their posteriors at theta."""
        for share in self.stream:
            yield from self.of(share).expect(theta).pieces


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
