"""EM on a model that is run anew for every number: the engine that takes any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_em.em.checks import Prepared
from pyro_em.em.edges import is_near_edge
from pyro_em.em.m_step import Ascent, GradientMStep
from pyro_em.em.placing import labelled
from pyro_em.em.stopping import resolution
from pyro_em.errors import ModelError
from pyro_em.graph import (
    Cliques,
    FactorGraph,
    Variable,
    alike,
    clique_posteriors,
    expected_log_joint,
    informed_weights,
    log_evidence,
)
from pyro_em.params import ParamSpace

__all__ = ["TracedEngine", "TracedExpectation"]


@dataclass(frozen=True)
class TracedExpectation:
    """An E-step: the objective, and the posterior over the clique of each site in ``names``."""

    objective: float
    log_evidence: float | None
    spread: float
    cliques: Cliques
    names: tuple[str, ...]


class TracedEngine:
    """E-steps from one run of the model, M-steps from many, with gradients through whatever it computes.

    Args:
        prepared: the checked model.
        space: its parameters, moved in place.
        m_step: how Q is raised.
        fixed: names of parameters that stay.
        counts_priors: whether densities of point estimates count.
        graph: of all data at the parameters in place; ``None`` runs the model.
    """

    def __init__(
        self,
        prepared: Prepared,
        space: ParamSpace,
        m_step: GradientMStep,
        fixed: tuple[str, ...],
        counts_priors: bool,
        graph: FactorGraph | None = None,
    ) -> None:
        self.prepared, self.space = prepared, space
        self.counts_priors = counts_priors and bool(prepared.inference.program.priors)
        leaves = space.free(fixed)
        self.ascent = Ascent(m_step, leaves, _coarsest(leaves))
        self._first = graph

    breaks = False
    runs_program = True

    @property
    def dtype(self) -> torch.dtype:
        """What limits the meaning of a change of the objective."""
        return self.ascent.dtype

    @property
    def is_stuck(self) -> bool:
        """Whether the M-step has failed too often in a row."""
        return self.ascent.rejections >= MAX_REJECTIONS

    @property
    def undefined(self) -> tuple[str, ...]:
        """Parameters in which the gradient of the objective was infinite or NaN, when it was last asked for."""
        return self.ascent.undefined

    @property
    def has_free(self) -> bool:
        """Whether there is a parameter to move."""
        return bool(self.ascent.leaves)

    def point(self) -> dict[str, Tensor]:
        """The parameters, for :meth:`move`."""
        return self.space.snapshot()

    def move(self, point: dict[str, Tensor]) -> None:
        """Put parameters back."""
        self._first = None
        self.space.restore(point)

    def coordinates(self) -> Tensor:
        """The free parameters in unconstrained coordinates, one vector, float64."""
        parts = [leaf.detach().reshape(-1).to(torch.float64) for leaf in self.ascent.leaves.values()]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def move_to(self, vector: Tensor) -> None:
        """Put the free parameters at a point of :meth:`coordinates`."""
        self._first = None
        at = 0
        for leaf in self.ascent.leaves.values():
            leaf.data.copy_(vector[at : at + leaf.numel()].reshape(leaf.shape))
            at += leaf.numel()

    def values(self) -> Tensor:
        """The free parameters as they are, one vector, float64."""
        leaves = self.space.leaves()
        parts = [leaves[n].value().detach().reshape(-1).to(torch.float64) for n in self.ascent.leaves]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def is_near_edge(self) -> bool:
        """Whether one of them is a probability next to zero or one."""
        leaves = self.space.leaves()
        return any(is_near_edge(leaves[n].value(), leaves[n].constraint) for n in self.ascent.leaves)

    def expect(self) -> TracedExpectation:
        """The E-step at the parameters in place."""
        with torch.no_grad():
            graph = self._graph() if self._first is None else self._weighted(self._first)
            self._first = None
        cliques = clique_posteriors(graph)
        cliques = replace(cliques, weights=informed_weights(graph, cliques.weights))
        prior = float(graph.log_prior()) if self.counts_priors else 0.0
        evidence = None if self.prepared.stochastic else cliques.log_evidence
        names = tuple(f.name for f in graph.factors)
        return TracedExpectation(cliques.log_evidence + prior, evidence, cliques.spread, cliques, names)

    def maximise(self, expectation: TracedExpectation) -> bool:
        """Raise Q in place; whether that was possible. A subsample, if any, is drawn anew afterwards."""
        with torch.no_grad():
            start = float(self.q(expectation))
        accepted = self.ascent.maximise(lambda: self.q(expectation), start)
        if self.prepared.stochastic:
            self.prepared.intervention.subsample.clear()
        return accepted

    def can_gain(self, nats: float) -> bool:
        """Whether L-BFGS on the objective itself would raise it by this much."""
        return self.ascent.can_gain(self.objective, nats)

    def variables(self) -> list[Variable]:
        """The latents that are summed out."""
        with torch.no_grad():
            return list(self._graph().variables.values())

    def block_size(self) -> int:
        """Dimensions of the largest covariance; unknown here."""
        return 1

    def observed(self, site: str) -> tuple[tuple[Variable, ...], Tensor]:
        """The one latent of an observed site, or those of its like along a chain, and the data."""
        args, kwargs = self.prepared.data
        nodes = self.prepared.inference.program.trace(args, kwargs, self.prepared.intervention).nodes
        graph = self._graph()
        factors = {f.name: f for f in graph.factors}
        if site not in factors or not nodes[site]["is_observed"] or len(factors[site].scope) != 1:
            raise ModelError(
                f"A start from data needs an observed site of dense data with one latent; {site!r} is none."
            )
        names = alike(graph, site)
        variables = tuple(factors[n].scope[0] for n in names)
        data = [nodes[n]["value"] for n in names]
        return variables, torch.stack(data, len(variables[0].plates)).flatten(0, len(variables[0].plates))

    def place(self, states: Mapping[str, Tensor], chosen: Mapping[str, Tensor], rest: float = 0.0) -> None:
        """Raise Q under latents that have been labelled."""
        with torch.no_grad():
            graph = self._graph()
        weights = tuple(labelled(f.plates, f.scope, states, chosen, rest) * f.scale for f in graph.factors)
        names = tuple(f.name for f in graph.factors)
        self.maximise(TracedExpectation(0.0, None, 0.0, Cliques(0.0, 0.0, weights), names))
        self._first = None

    def is_held(self) -> bool:
        """There is no floor here."""
        return False

    def noise(self, expectation: TracedExpectation) -> float:
        """Rounding errors of the objective, nats."""
        return resolution(expectation.spread, self.dtype)

    def agrees(self) -> bool:
        """It is the program."""
        return True

    def finish(self) -> bool:
        """The parameters are in place already."""
        return False

    def q(self, expectation: TracedExpectation) -> Tensor:
        """Q at the parameters in place."""
        graph = self._graph()
        value = expected_log_joint(graph, expectation.cliques.weights)
        return value + graph.log_prior() if self.counts_priors else value

    def objective(self) -> Tensor:
        """What EM climbs, differentiable: the log evidence, with priors where they count."""
        graph = self._graph()
        value = log_evidence(graph)
        return value + graph.log_prior() if self.counts_priors else value

    def _graph(self) -> FactorGraph:
        args, kwargs = self.prepared.data
        return self._weighted(self.prepared.inference.graph(args, kwargs, self.prepared.intervention))

    def _weighted(self, graph: FactorGraph) -> FactorGraph:
        """The graph with the caller's weights beside the model's own."""
        return graph.counted(self.prepared.weights)


MAX_REJECTIONS = 10


def _coarsest(leaves: Mapping[str, Tensor]) -> torch.dtype:
    """The least exact dtype among the parameters, which limits what a change of the objective can mean."""
    return max((leaf.dtype for leaf in leaves.values()), key=lambda d: torch.finfo(d).eps, default=torch.float64)
