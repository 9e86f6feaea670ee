"""The ELBO of a model that sums out its finite latents given the guide's draws of the others.

The sum is the elimination of :mod:`pyro_em.graph`, whose gradient is right however far factors disagree; that of Pyro's
log-ring vanishes beyond 16 nats in float32 (36 in float64).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_em.graph import Factor, Program, Term, align, build_graph, log_evidence_terms, weighted
from pyro_em.graph.trace import Model, draw_guide, is_latent

__all__ = ["SummedBound"]


@dataclass(frozen=True)
class SummedBound:
    """E_q(c)[log sum_z p(x, z, c) - log q(c)]: latents z summed out exactly given the guide's draw of c.

    A guide site without a reparameterised sampler contributes its score-function gradient, each element weighted by the
    terms it can influence: those of its own plate elements, and those outside its plates.
    """

    program: Program
    guide: Model
    num_particles: int = 1

    def value_and_grad(self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        """An unbiased estimate; the gradient of its negative is added to the leaves."""
        total = 0.0
        for _ in range(self.num_particles):
            with torch.enable_grad():
                terms, scores = self._particle(args, kwargs, scales)
                bound = _total(terms)
                (-(bound + _surrogate(terms, scores)) / self.num_particles).backward()
            total += float(bound.detach()) / self.num_particles
        return total

    def value(self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        """An unbiased estimate."""
        with torch.no_grad():
            draws = [float(_total(self._particle(args, kwargs, scales)[0])) for _ in range(self.num_particles)]
        return sum(draws) / self.num_particles

    def _particle(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]
    ) -> tuple[list[Term], list[Factor]]:
        """The bound's terms at one draw of the guide, and log q of the sites that need their score."""
        drawn, intervention = draw_guide(self.guide, args, kwargs, scales)
        graph = self.program.graph(args, kwargs, intervention)
        found = build_graph(drawn, frozenset(), frozenset())
        guide = [f for f in found.factors if is_latent(drawn.nodes[f.name])]
        log_q = [Term(f.plates, -f.table, weighted(found, -f.table, f.dims, f.plates) * f.scale) for f in guide]
        scores = [f for f in guide if not getattr(drawn.nodes[f.name]["fn"], "has_rsample", False)]
        return log_evidence_terms(graph) + log_q, scores


def _total(terms: list[Term]) -> Tensor:
    return torch.stack([torch.zeros((), dtype=torch.float64), *(t.scaled.sum() for t in terms)]).sum()


def _surrogate(terms: list[Term], scores: list[Factor]) -> Tensor:
    """Zero in expectation, with the gradient that the draws' probabilities contribute."""
    total = torch.zeros((), dtype=torch.float64)
    for score in scores:
        cost = sum(_onto(term, score) for term in terms)
        total = total + (score.table * cost).sum()
    return total


def _onto(term: Term, score: Factor) -> Tensor:
    """A term's value for each element of the score's plates, summed over its other plates."""
    others = [i for i, p in enumerate(term.plates) if p not in score.plates]
    table = term.scaled.detach()
    kept = [p for p in term.plates if p in score.plates]
    return align(table.sum(others) if others else table, kept, score.plates)
