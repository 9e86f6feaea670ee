"""What an E-step by runs of the program leaves behind: posteriors of the latents, share by share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from pyro_em.em.watch import Narrow
from pyro_em.graph import FactorGraph, expected_log_joint, informed_weights

__all__ = ["TracedExpectation", "Weights", "expected", "informed"]

Weights = dict[str, Tensor]  # by site, the posterior over its clique, times its scale


@dataclass(frozen=True)
class TracedExpectation:
    """An E-step.

    Attributes:
        objective: at the parameters it was made at, nats.
        log_evidence: log p(x), nats; ``None`` of a subsample.
        spread: root of the sum of squares of its terms.
        point: those parameters, unconstrained.
        held: posteriors, share by share; ``None`` where these are too many to keep, and are made anew.
        narrow: a component that has collapsed.
    """

    objective: float
    log_evidence: float | None
    spread: float
    point: dict[str, Tensor]
    held: tuple[Weights, ...] | None
    narrow: Narrow | None = None


def informed(graph: FactorGraph, weights: Iterable[Tensor]) -> Weights:
    """By site, the posteriors that an M-step may hear."""
    found = informed_weights(graph, tuple(weights))
    return {f.name: w for f, w in zip(graph.factors, found, strict=True)}


def expected(graph: FactorGraph, weights: Weights) -> Tensor:
    """Q of one share, nats; differentiable in the parameters of the graph."""
    return expected_log_joint(graph, [weights[f.name] for f in graph.factors])
