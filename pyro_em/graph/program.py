"""A model prepared for repeated enumeration: the one source of factor graphs for E-step, M-step and posterior."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.build import build_factors, build_graph, site_log_prob
from pyro_em.graph.eliminate import index_table
from pyro_em.graph.factor import Factor, FactorGraph
from pyro_em.graph.survey import Survey, survey
from pyro_em.graph.trace import Intervention, Model, run_enumerated

__all__ = ["Program"]


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
        self, graph: FactorGraph, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention
    ) -> None:
        """Compare the graph with plain runs that it must contain.

        With latents drawn, all in their first state and all in their last, every table must hold the plain run's
        log-probability. This catches, at the cost of three runs, code whose result changes under enumeration without
        failing: batch statistics, dropout, reshapes that mix dimensions, ``(z == 1).any()``, imputed values that other
        sites depend on.

        Raises:
            ModelError: a site's density differs between the runs.
        """
        with torch.no_grad():
            for forced in ({}, _at_state(graph, 0), _at_state(graph, -1)):
                seen = survey(self.model, args, kwargs, replace(intervention, forced=forced))
                self._compare(graph, seen)

    def _compare(self, graph: FactorGraph, seen: Survey) -> None:
        plain = {f.name: f for f in build_graph(seen.trace, self.priors, self.ignored).factors}
        states = {
            v: graph.layout[name].states(seen.trace.nodes[name]["value"]).unsqueeze(0)
            for name, v in graph.variables.items()
        }
        for factor in graph.factors:
            drawn = index_table(factor.table, factor.dims, {v: states[v] for v in factor.scope}, 1)[0]
            dtype = site_log_prob(seen.site(factor.name)).dtype
            if not _agree(drawn, plain[factor.name].table, dtype):
                raise ModelError(self._mismatch(factor, seen))

    def _mismatch(self, factor: Factor, seen: Survey) -> str:
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


def _agree(drawn: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-7 if dtype == torch.float64 else 1e-3
    return bool(torch.allclose(drawn, plain, rtol=tolerance, atol=tolerance, equal_nan=True))


def _at_state(graph: FactorGraph, state: int) -> dict[str, Tensor]:
    """Every variable in one of its states, as values in the model's shape."""
    found = {}
    for name, variable in graph.variables.items():
        index = torch.full([p.size for p in variable.plates], state % variable.size)
        found[name] = graph.layout[name].values(index)
    return found
