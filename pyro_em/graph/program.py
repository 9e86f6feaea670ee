"""A model prepared for repeated enumeration: the one source of factor graphs for E-step, M-step and posterior."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.build import build_factors, build_graph, site_log_prob
from pyro_em.graph.eliminate import at_states
from pyro_em.graph.enumerated import run_enumerated
from pyro_em.graph.factor import Factor, FactorGraph
from pyro_em.graph.survey import Survey, survey
from pyro_em.graph.trace import Intervention, Model

__all__ = ["Program"]

MANY = 50  # latents, beyond which one run shows each kind of them in all its states


@dataclass(frozen=True)
class Program:
    """A model and what a fit changes in its runs.

    Attributes:
        model: the user's program.
        max_plate_nesting: dimensions to the right of the enumerated ones.
        ignored: imputed sites, left out of the graph.
        priors: names of point-estimated latents, whose densities are kept apart.
    """

    model: Model
    max_plate_nesting: int
    ignored: frozenset[str] = frozenset()
    priors: frozenset[str] = frozenset()

    def graph(self, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> FactorGraph:
        """The factor graph at the parameters in place; differentiable in them unless grad is off."""
        return build_graph(self.trace(args, kwargs, intervention), self.priors, self.ignored)

    def factors(
        self, names: Collection[str], args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention
    ) -> tuple[Factor, ...]:
        """The factors of some sites at the parameters in place, from a run that ends at the last of them."""
        intervention.enumerate_all = True
        trace = run_enumerated(self.model, args, kwargs, intervention, self.max_plate_nesting, names)
        return build_factors(trace, names, self.ignored)

    def trace(self, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> poutine.Trace:
        """One enumerated run, before any density is evaluated."""
        intervention.enumerate_all = True
        return run_enumerated(self.model, args, kwargs, intervention, self.max_plate_nesting)

    def verify(
        self,
        graph: FactorGraph,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        intervention: Intervention,
        seen: Survey | None = None,
    ) -> None:
        """Compare the graph with plain runs that it must contain.

        With latents in any state, all in their first and all in their last - of many latents, each in any state - every
        table must hold the plain run's log-probability. This catches, at the cost of at most three runs, code whose
        result changes under enumeration without failing: batch statistics, dropout, reshapes that mix dimensions,
        ``(z == 1).any()``, imputed values that other sites depend on.

        Args:
            seen: a run at the same parameters with latents in any state; ``None`` makes one.

        Raises:
            ModelError: a site's density differs between the runs.
        """
        states: list[Callable[[], dict[str, Tensor]]] = [lambda: _at_any_state(graph)]
        if len(graph.variables) <= MANY:
            states += [lambda: _at_state(graph, 0), lambda: _at_state(graph, -1)]
        with torch.no_grad():
            if seen is not None and self._odd_one(graph, seen) is None:
                states = states[1:]
            for forced in states:
                again = survey(self.model, args, kwargs, replace(intervention, forced=forced()))
                odd = self._odd_one(graph, again)
                if odd is not None:
                    raise ModelError(self._mismatch(odd))

    def _odd_one(self, graph: FactorGraph, seen: Survey) -> Factor | None:
        """A factor whose table does not hold the log-probability of a plain run."""
        plain = {f.name: f for f in build_graph(seen.trace, self.priors, self.ignored).factors}
        states = {
            v: graph.layout[name].states(seen.trace.nodes[name]["value"]).unsqueeze(0)
            for name, v in graph.variables.items()
        }
        alike: dict[object, list[Factor]] = {}
        for factor in graph.factors:
            key = factor.plates, tuple((v.size, v.plates) for v in factor.scope), factor.table.dtype
            alike.setdefault(key, []).append(factor)
        for factors in alike.values():
            drawn = at_states(factors, states)
            dtype = site_log_prob(seen.site(factors[0].name)).dtype
            same = _agree(drawn, torch.stack([plain[f.name].table for f in factors]), dtype)
            if not bool(same.all()):
                return factors[int(same.long().argmin())]
        return None

    def _mismatch(self, factor: Factor) -> str:
        names = ", ".join(repr(v.name) for v in factor.scope) or "the model"
        hint = ""
        if self.ignored:
            hint = (
                f" Or it uses a value imputed by obs_mask ({sorted(self.ignored)}): such a value is a continuous "
                "latent, which EM cannot sum out once other sites depend on it."
            )
        return (
            f"Site {factor.name!r} has another log-probability when {names} is enumerated than when it is drawn, so "
            "sums over it would be wrong. The code between them must broadcast over the extra left dimension of the "
            "latent and be deterministic: no batch statistics (call .eval()), no dropout, no reshape that mixes "
            f"dimensions.{hint}"
        )


def _agree(drawn: Tensor, plain: Tensor, dtype: torch.dtype) -> Tensor:
    """For each factor, whether all of its values are the same."""
    tolerance = 1e-7 if dtype == torch.float64 else 1e-3
    close = torch.isclose(drawn, plain, rtol=tolerance, atol=tolerance, equal_nan=True)
    return close.reshape(len(close), -1).all(1)


def _at_any_state(graph: FactorGraph) -> dict[str, Tensor]:
    """Every variable in states drawn at random, as values in the model's shape."""
    found = {}
    for name, variable in graph.variables.items():
        index = torch.randint(variable.size, [p.size for p in variable.plates])
        found[name] = graph.layout[name].values(index)
    return found


def _at_state(graph: FactorGraph, state: int) -> dict[str, Tensor]:
    """Every variable in one of its states, as values in the model's shape."""
    found = {}
    for name, variable in graph.variables.items():
        index = torch.full([p.size for p in variable.plates], state % variable.size)
        found[name] = graph.layout[name].values(index)
    return found
