"""EM by runs of the model over data in batches: gradients of batches add up as statistics do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.data import Batch
from pyro_em.em.batched import Stream
from pyro_em.em.checks import Prepared
from pyro_em.em.m_step import GradientMStep
from pyro_em.em.traced import TracedEngine, TracedExpectation
from pyro_em.graph import (
    Cliques,
    FactorGraph,
    Intervention,
    clique_posteriors,
    expected_log_joint,
    informed_weights,
    log_evidence,
)
from pyro_em.params import ParamSpace

__all__ = ["TracedBatches"]


@dataclass(frozen=True)
class StreamExpectation(TracedExpectation):
    """An E-step over a stream: its posteriors are made anew from the parameters it was taken at."""

    point: dict[str, Tensor]


class TracedBatches(TracedEngine):
    """A :class:`TracedEngine` whose sums run over batches; memory is bounded by one."""

    def __init__(
        self,
        prepared: Prepared,
        space: ParamSpace,
        m_step: GradientMStep,
        fixed: tuple[str, ...],
        counts_priors: bool,
        stream: Stream,
    ) -> None:
        super().__init__(prepared, space, m_step, fixed, counts_priors)
        self.stream = stream

    def expect(self) -> StreamExpectation:
        """The E-step at the parameters in place."""
        evidence = squares = prior = 0.0
        with torch.no_grad():
            for batch, weights in self.stream:
                graph = self._batch(batch, weights)
                found = clique_posteriors(graph)
                evidence, squares = evidence + found.log_evidence, squares + found.spread**2
                prior = float(graph.log_prior()) if self.counts_priors else 0.0
        spread = squares**0.5
        cliques = Cliques(evidence, spread, ())
        return StreamExpectation(evidence + prior, evidence, spread, cliques, (), self.space.snapshot())

    def q(self, expectation: TracedExpectation) -> Tensor:
        """Q at the parameters in place; the posterior of each batch is that of the E-step's parameters."""
        assert isinstance(expectation, StreamExpectation)
        here = self.space.snapshot()

        def part(batch: Batch, weights: Mapping[str, Tensor]) -> tuple[Tensor, FactorGraph]:
            self.space.restore(expectation.point)
            with torch.no_grad():
                old = self._batch(batch, weights)
            posterior = informed_weights(old, clique_posteriors(old).weights)
            self.space.restore(here)
            graph = self._batch(batch, weights)
            return expected_log_joint(graph, posterior), graph

        return self._total(part)

    def objective(self) -> Tensor:
        """What EM climbs, differentiable."""

        def part(batch: Batch, weights: Mapping[str, Tensor]) -> tuple[Tensor, FactorGraph]:
            graph = self._batch(batch, weights)
            return log_evidence(graph), graph

        return self._total(part)

    def _total(self, part: Callable[[Batch, Mapping[str, Tensor]], tuple[Tensor, FactorGraph]]) -> Tensor:
        """The sum over batches, and its gradient, with one batch in memory at a time."""
        leaves = list(self.ascent.leaves.values())
        total, slopes = torch.zeros((), dtype=torch.float64), [torch.zeros_like(leaf) for leaf in leaves]
        for i, (batch, weights) in enumerate(self.stream):
            value, graph = part(batch, weights)
            if i == 0 and self.counts_priors:
                value = value + graph.log_prior()
            total = total + value.detach()
            if value.requires_grad and leaves:
                found = torch.autograd.grad(value, leaves, allow_unused=True)
                slopes = [s if g is None else s + g for s, g in zip(slopes, found, strict=True)]
        if torch.is_grad_enabled():
            for leaf, slope in zip(leaves, slopes, strict=True):
                linear = (leaf * slope).sum()
                total = total + (linear - linear.detach())
        return total

    def _batch(self, batch: Batch, weights: Mapping[str, Tensor]) -> FactorGraph:
        graph = self.prepared.inference.graph(batch.args, batch.kwargs, Intervention())
        return graph.counted(weights)
