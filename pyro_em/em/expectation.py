"""What an E-step by runs of the program leaves behind: posteriors of the latents, share by share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pyro_em.em.watch import Narrow
from pyro_em.graph import FactorGraph, expected_log_joint, informed_weights

__all__ = ["Posterior", "TracedExpectation", "expected", "informed"]


@dataclass(frozen=True)
class Posterior:
    """Of the latents of one share.

    Attributes:
        cliques: by site, the posterior over its clique, times its scale and the weights of its plates' elements.
        weights: by plate, these weights.
    """

    cliques: dict[str, Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many numbers it is made of."""
        return sum(w.numel() for w in self.cliques.values())


@dataclass(frozen=True)
class TracedExpectation:
    """An E-step.

    Attributes:
        objective: at the parameters it was made at, nats.
        log_evidence: log p(x), nats; ``None`` of a subsample.
        spread: root of the sum of squares of its terms.
        point: those parameters, unconstrained.
        held: posteriors, share by share; ``None`` where these are too many to keep, and are made anew.
        narrow: spreads that are nothing.
    """

    objective: float
    log_evidence: float | None
    spread: float
    point: dict[str, Tensor]
    held: tuple[Posterior, ...] | None
    narrow: tuple[Narrow, ...] = ()


def informed(graph: FactorGraph, weights: Iterable[Tensor]) -> Posterior:
    """What an M-step may hear of the posterior."""
    found = informed_weights(graph, tuple(weights))
    return Posterior({f.name: w for f, w in zip(graph.factors, found, strict=True)}, graph.weights)


def expected(graph: FactorGraph, posterior: Posterior) -> Tensor:
    """Q of one share, nats; differentiable in the parameters of the graph."""
    return expected_log_joint(graph, [posterior.cliques[f.name] for f in graph.factors])
