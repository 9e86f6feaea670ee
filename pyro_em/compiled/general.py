"""E-steps of any other structure: tables from the factors, then the elimination that serves every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.evaluate import ALL
from pyro_em.compiled.point import AnyFactor, Point, Tally
from pyro_em.graph import Factor, FactorGraph, clique_posteriors, informed_weights
from pyro_em.graph.chain import components

__all__ = ["General", "connected"]


@dataclass(frozen=True)
class General:
    """Factors that are connected through their latents, or one factor without any.

    Attributes:
        factors: in the model's order.
        plate_weights: weights of the data by plate.
        scale: of the whole.
    """

    factors: tuple[AnyFactor, ...]
    plate_weights: Mapping[str, Tensor]
    scale: float

    def expect(self, point: Point, tally: Tally) -> tuple[float, float]:
        """Add expected statistics to the tally; the log evidence without base measures, and its spread."""
        graph = self.graph([point.table(f, ALL) for f in self.factors])
        cliques = clique_posteriors(graph)
        weights = informed_weights(graph, cliques.weights)
        for f, w in zip(self.factors, weights, strict=True):
            tally.add(f, w.expand(self._shape(f)).reshape(f.num_rows, f.num_states), ALL)
        return cliques.log_evidence, cliques.spread

    def graph(self, tables: Sequence[Tensor]) -> FactorGraph:
        """The factor graph with these tables, inner plates already multiplied out."""
        factors = []
        for f, t in zip(self.factors, tables, strict=True):
            full = t.expand(f.num_rows, f.num_states).reshape(self._shape(f))
            full = torch.where(full < -1e29, -torch.inf, full)
            active = None if f.active is None else f.active.reshape([p.size for p in f.plates])
            factors.append(Factor(f.name, f.plates, f.scope, full, self.scale, active))
        variables = {v.name: v for f in self.factors for v in f.scope}
        return FactorGraph(tuple(factors), {}, variables, {}, self.plate_weights)

    def _shape(self, factor: AnyFactor) -> list[int]:
        return [*(p.size for p in factor.plates), *(v.size for v in factor.scope)]


def connected(factors: Sequence[AnyFactor]) -> list[list[AnyFactor]]:
    """Factors grouped by the latents they share, in the model's order."""
    names = [[v.name for v in f.scope] if f.stack is None else [f.stack.frames.tracks[0]] for f in factors]
    return [[factors[i] for i in members] for members in components(names)]
