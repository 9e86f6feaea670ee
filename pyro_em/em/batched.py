"""EM over data in batches: one pass accumulates what full data would, whatever the size of a batch.

Statistics of batches add up, so the M-step is that of all data; memory is bounded by one batch. Each batch is run once
per pass, to get at its data, and compared with what probing found out on the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_em.compiled import Expectation, TensorModel
from pyro_em.compiled.model import assemble
from pyro_em.data import Batch, Batches
from pyro_em.em.checks import Prepared
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, Plate, Program
from pyro_em.graph.build import datum_weights, plates_of, site_scale, structure
from pyro_em.graph.factor import together
from pyro_em.params import ParamSpace
from pyro_em.probing import Coordinates, Probed, ProbedSite, Selected, SiteParts, values_of
from pyro_em.probing.apart import read
from pyro_em.probing.sites import as_independent
from pyro_em.probing.stacks import apart
from pyro_em.probing.trim import trimmed

__all__ = ["BatchedModel", "Stream", "open_stream"]


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
    """

    first: TensorModel
    probed: Probed
    stream: Stream
    program: Program
    space: ParamSpace

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
        return all(self._sites(batch) is not None for batch, _ in self.stream)

    def expect(self, theta: Tensor) -> Expectation:
        """The E-step at theta, summed over batches."""
        total: Expectation | None = None
        for batch, weights in self.stream:
            found = self._model(batch, weights).expect(theta)
            total = found if total is None else total + found
        assert total is not None
        return total

    def _model(self, batch: Batch, weights: Mapping[str, Tensor]) -> TensorModel:
        found = self._sites(batch, check=False)
        assert found is not None
        sites, nodes = found
        scales = {s.name: site_scale(s.name, nodes[s.members[0]]) for s in sites}
        own = datum_weights({n: nodes[n] for s in sites for n in s.members})
        whole = together(own, weights)
        return assemble([trimmed(s) for s in sites], self.first.books, self.coordinates, scales, whole)

    def _sites(self, batch: Batch, check: bool = True) -> tuple[list[ProbedSite], dict[str, Any]] | None:
        """The sites of a batch with the routes of the first; ``None`` where their arguments are others."""
        intervention = Intervention(given={n: v.detach() for n, v in self.space.latents().items()})
        with torch.no_grad(), pyro.validation_enabled(False):
            trace = self.program.trace(batch.args, batch.kwargs, intervention)
            found = structure(trace, self.program.ignored)
        theta = self.coordinates.flat(self.space.values())
        raws = {name: read(name, site, found) for name, site in found.sites.items()}
        sites = []
        for name, known in self.probed.sites.items():
            parts = apart(raws, self.probed.piles[name], name) if name in raws and name in self.probed.piles else ""
            if not isinstance(parts, SiteParts) or not isinstance(known.parts, SiteParts):
                return None
            if type(parts.family) is not type(known.parts.family):
                (parts,) = as_independent([parts])
            if type(parts.family) is not type(known.parts.family):
                return None
            if check and not _explained(parts, known, self.coordinates, theta):
                return None
            sites.append(replace(known, parts=parts))
        return sites, found.sites


def _explained(parts: SiteParts, known: ProbedSite, coordinates: Coordinates, theta: Tensor) -> bool:
    """Whether the routes of the first batch give this batch's arguments."""
    for name, argument in parts.arguments.items():
        route = known.routes[name]
        if not isinstance(route, Selected):
            return False
        data_axes = [i for i, d in enumerate(parts.dims) if isinstance(d, Plate)]
        if any(route.index.shape[i] > 1 for i in data_axes):
            return False
        expected = values_of(route, coordinates, theta)
        tolerance = 1e-9 if argument.dtype == torch.float64 else 1e-5
        found, wanted = torch.broadcast_tensors(argument.to(torch.float64), expected)
        if not torch.allclose(found, wanted, rtol=tolerance, atol=0):
            return False
    return True
