"""The data of a fit in shares, each of which the program can be run on: all of them as one, or batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_em.data import Batch, Batches
from pyro_em.em.checks import Prepared
from pyro_em.em.independence import refuse_dependence
from pyro_em.em.inference import ExactInference
from pyro_em.errors import ModelError
from pyro_em.graph import FactorGraph, Intervention, Program
from pyro_em.graph.build import Structure, graph_of, plates_of, structure

__all__ = ["Share", "Shares", "Stream", "may_be_held", "open_stream", "whole"]

MAX_HELD = 2**21  # numbers, 16 MB


@dataclass(frozen=True)
class Share:
    """Some of the data, or all.

    Attributes:
        args, kwargs: the model's arguments.
        weights: how often each datum counts, by plate.
        inference: sums out the latents.
        intervention: holds the subsample of plates.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: Mapping[str, Tensor]
    inference: ExactInference
    intervention: Intervention

    def structure(self) -> Structure:
        """A run of the program at the parameters in place."""
        return self.inference.structure(self.args, self.kwargs, self.intervention)

    def graph(self, found: Structure | None = None) -> FactorGraph:
        """The same, or a run that was made, as a factor graph; with the caller's weights beside the model's own."""
        found = self.structure() if found is None else found
        return graph_of(found, self.inference.program.priors).counted(self.weights)

    def part(self, sites: Collection[str]) -> FactorGraph:
        """The same without weights, of some sites only, from a run that ends at the last of them."""
        return FactorGraph(self.inference.factors(sites, self.args, self.kwargs, self.intervention), {}, {}, {}, {})


@dataclass(frozen=True)
class Stream:
    """The data of a fit, batch by batch.

    Attributes:
        batches: the caller's data.
        plates: names of the plates that grow with a batch.
        weights: how often each datum counts, by plate, of all data.
        inference: sums out the latents.
    """

    batches: Batches
    plates: frozenset[str]
    weights: Mapping[str, Tensor]
    inference: ExactInference

    def __iter__(self) -> Iterator[Share]:
        """Every batch once, in order, with the weights of its data."""
        at = 0
        for batch in self.batches.in_order():
            rows = slice(at, at := at + batch.size)
            weights = {n: w[rows] if n in self.plates else w for n, w in self.weights.items()}
            yield Share(batch.args, batch.kwargs, weights, self.inference, Intervention())


Shares = tuple[Share] | Stream


def may_be_held(size: int) -> bool:
    """Whether so many numbers, made from all batches, may stay in memory from one pass to the next."""
    return size <= MAX_HELD


def whole(prepared: Prepared) -> tuple[Share]:
    """All data as one share."""
    return (Share(*prepared.data, prepared.weights, prepared.inference, prepared.intervention),)


def open_stream(batches: Batches, prepared: Prepared, weights: Mapping[str, Tensor]) -> Stream:
    """Find the plates that hold a batch.

    Raises:
        ModelError: a density outside of them, which every batch would count anew; rows that depend on each other.
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
    refuse_dependence(prepared, first)
    return Stream(batches, growing, weights, prepared.inference)


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
