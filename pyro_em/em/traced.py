"""EM on a model that is run anew for every number: the engine that takes any model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, repeat

import torch
from torch import Tensor

from pyro_em.em.checks import Prepared
from pyro_em.em.edges import is_near_edge
from pyro_em.em.expectation import Posterior, TracedExpectation, expected, informed
from pyro_em.em.m_step import Ascent, GradientMStep
from pyro_em.em.placing import labelled
from pyro_em.em.shares import Shares, may_be_held
from pyro_em.em.spread import kind_of
from pyro_em.em.stopping import resolution
from pyro_em.em.watch import Narrow, Watch
from pyro_em.errors import ModelError
from pyro_em.graph import (
    FactorGraph,
    Variable,
    alike,
    clique_posteriors,
    log_evidence,
)
from pyro_em.params import ParamSpace
from pyro_em.summed import summed

__all__ = ["TracedEngine"]


class TracedEngine:
    """E-steps from one run of the model on all data, M-steps from many, with gradients through whatever it computes.

    Gradients of the shares add up as log evidences do; of a stream, one share is in memory at a time.

    Args:
        prepared: the checked model.
        space: its parameters, moved in place.
        m_step: how Q is raised.
        fixed: names of parameters that stay.
        counts_priors: whether densities of point estimates count.
        shares: the data.
        graph: of all data at the parameters in place; ``None`` runs the model.
    """

    def __init__(
        self,
        prepared: Prepared,
        space: ParamSpace,
        m_step: GradientMStep,
        fixed: tuple[str, ...],
        counts_priors: bool,
        shares: Shares,
        graph: FactorGraph | None = None,
    ) -> None:
        self.prepared, self.space, self.shares = prepared, space, shares
        self.counts_priors = counts_priors and bool(prepared.inference.program.priors)
        leaves = space.free(fixed)
        self.ascent = Ascent(m_step, leaves, _coarsest(leaves))
        self.watch = Watch(self.dtype)
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
        return self.climbing.rejections >= MAX_REJECTIONS

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
        evidence = squares = prior = 0.0
        held: list[Posterior] | None = []
        size, narrow = 0, list[Narrow]()
        for graph, seen in self._runs():
            found = clique_posteriors(graph)
            evidence, squares = evidence + found.log_evidence, squares + found.spread**2
            narrow += seen
            if self.counts_priors:
                prior = float(graph.log_prior())
            if held is not None:
                held.append(informed(graph, found.weights))
                size += held[-1].size
                held = held if isinstance(self.shares, tuple) or may_be_held(size) else None
        self.watch.is_complete |= self._first is None
        self._first = None
        return TracedExpectation(
            objective=evidence + prior,
            log_evidence=None if self.prepared.stochastic else evidence,
            spread=squares**0.5,
            point=self.space.snapshot(),
            held=None if held is None else tuple(held),
            narrow=tuple(narrow),
        )

    def _runs(self) -> Iterator[tuple[FactorGraph, list[Narrow]]]:
        """The program at the parameters in place, share by share, without gradients; and what has collapsed there."""
        if self._first is not None:
            yield self._first.counted(self.prepared.weights), []
            return
        for share in self.shares:
            with torch.no_grad():
                found = share.structure()
                graph = share.graph(found)
                if not self.watch.is_complete:
                    self.watch.note(found, graph)
                    self.watch.is_complete = isinstance(self.shares, tuple)  # which is one share, of all data
                seen = self.watch.look(share, found)
            yield graph, seen

    def refuse(self, expectation: TracedExpectation) -> None:
        """Go no further from an E-step where a component has collapsed under the gradient.

        Raises:
            DegenerateError: one has.
        """
        error = self.watch.error(expectation.narrow, self.climbing.leaves)
        if error is not None:
            raise error

    @property
    def climbing(self) -> Ascent:
        """The M-step of what the gradient moves."""
        return self.ascent

    def posteriors(self, expectation: TracedExpectation) -> Iterator[Posterior]:
        """Those of the E-step, share by share."""
        if expectation.held is not None:
            yield from expectation.held
            return
        for share in self.shares:
            with self._at(expectation.point), torch.no_grad():
                graph = share.graph()
            yield informed(graph, clique_posteriors(graph).weights)

    @contextmanager
    def _at(self, point: dict[str, Tensor]) -> Iterator[None]:
        """Other parameters in place, for the body of a ``with``."""
        here = self.space.snapshot()
        self.space.restore(point)
        try:
            yield
        finally:
            self.space.restore(here)

    def maximise(self, expectation: TracedExpectation) -> bool:
        """Raise Q in place; whether that was possible. A subsample, if any, is drawn anew afterwards."""
        with torch.no_grad():
            start = float(self.q(expectation))
        accepted = self.ascent.maximise(lambda: self.q(expectation), start)
        if self.prepared.stochastic:
            self.prepared.intervention.subsample.clear()
        return accepted

    def can_gain(self, nats: float, keep: bool = False) -> bool:
        """Whether L-BFGS on the objective itself would raise it by this much; and, with ``keep``, stay there."""
        return self.ascent.can_gain(self.objective, nats, keep)

    def variables(self) -> list[Variable]:
        """The latents that are summed out; of a stream, those of its first share."""
        return list(next(self._runs())[0].variables.values())

    def block_size(self) -> int:
        """Dimensions of the largest covariance; unknown here."""
        return 1

    def observed(self, site: str) -> tuple[tuple[Variable, ...], Tensor]:
        """The one latent of an observed site, or those of its like along a chain, and the data."""
        args, kwargs = self.prepared.data
        nodes = self.prepared.inference.program.trace(args, kwargs, self.prepared.intervention).nodes
        graph, _ = next(self._runs())
        factors = {f.name: f for f in graph.factors}
        if site not in factors or not nodes[site]["is_observed"] or len(factors[site].scope) != 1:
            raise ModelError(
                f"A start from data needs an observed site of dense data with one latent; {site!r} is none."
            )
        names = alike(graph, site, lambda n: kind_of(nodes[n]))
        variables = tuple(factors[n].scope[0] for n in names)
        data = [nodes[n]["value"] for n in names]
        return variables, torch.stack(data, len(variables[0].plates)).flatten(0, len(variables[0].plates))

    def place(self, states: Mapping[str, Tensor], chosen: Mapping[str, Tensor], rest: float = 0.0) -> None:
        """Raise Q under latents that have been labelled; of a stream, over its first share."""
        factors = next(self._runs())[0].factors
        cliques = {f.name: labelled(f.plates, f.scope, states, chosen, rest) * f.scale for f in factors}
        self.maximise(TracedExpectation(0.0, None, 0.0, self.space.snapshot(), (Posterior(cliques),)))
        self._first = None

    def is_held(self) -> bool:
        """There is no floor here."""
        return False

    def slack(self, expectation: TracedExpectation) -> float:
        """What rounding can take from the objective at worst, nats; of a program, no more is known than its noise."""
        return self.noise(expectation)

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
        """Q at the parameters in place, differentiable."""
        return self._total(expected, self.posteriors(expectation))

    def objective(self) -> Tensor:
        """What EM climbs, differentiable: the log evidence, with priors where they count."""
        return self._total(_evidence, repeat(Posterior({})))

    def _total(self, term: Callable[[FactorGraph, Posterior], Tensor], posteriors: Iterable[Posterior]) -> Tensor:
        """The sum over shares, with priors where they count."""
        priors = chain([self.counts_priors], repeat(False))

        def terms() -> Iterator[Tensor]:
            for share, posterior, counts in zip(self.shares, posteriors, priors):  # noqa: B905
                graph = share.graph()
                value = term(graph, posterior)
                yield value + graph.log_prior() if counts else value

        return summed(terms(), list(self.ascent.leaves.values()))


def _evidence(graph: FactorGraph, posterior: Posterior) -> Tensor:
    return log_evidence(graph)


MAX_REJECTIONS = 10


def _coarsest(leaves: Mapping[str, Tensor]) -> torch.dtype:
    """The least exact dtype among the parameters, which limits what a change of the objective can mean."""
    return max((leaf.dtype for leaf in leaves.values()), key=lambda d: torch.finfo(d).eps, default=torch.float64)
