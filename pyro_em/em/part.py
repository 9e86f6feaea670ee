"""The part of Q that gradients climb: known sites by their statistics, the others by a short run of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.numeric import expected
from pyro_em.compiled.plan import Plan
from pyro_em.em.checks import Prepared
from pyro_em.graph import FactorGraph, expected_log_joint
from pyro_em.params import ParamSpace

__all__ = ["Part"]


@dataclass(frozen=True)
class Part:
    """Q without what the parameters of the gradient do not move.

    A chain whose initial law alone needs the program, say, is run for its first step only.

    Attributes:
        plan: who owns what.
        prepared: the checked model.
        space: its parameters.
        sites: those that only the program knows.
    """

    plan: Plan
    prepared: Prepared
    space: ParamSpace
    sites: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, prepared: Prepared, space: ParamSpace) -> Part | None:
        """``None`` where the whole of Q is needed: densities of point estimates, or sites by element, move too."""
        moved = plan.gradient.keys()
        estimated = {n for name, params in plan.probed.priors.items() for n in (name, *params)}
        books = {f.name for f in plan.model.factors if not isinstance(f, ElementFactor)}
        touched = [s for s in plan.probed.sites.values() if moved & set(s.params)]
        by_program = [s for s in touched if s.name not in books]
        known = {f.name for f in plan.model.factors}
        if plan.has_unknown_path or moved & estimated or any(s.name in known for s in by_program):
            return None
        return cls(plan, prepared, space, tuple(n for s in by_program for n in s.members))

    def q(self, weights: dict[str, Tensor], stats: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        """Q at the parameters in place, up to a constant, in nats; differentiable in their leaves.

        Args:
            weights: posteriors of the sites' cliques.
            stats: expected statistics of the known sites.
        """
        coordinates, books = self.plan.probed.coordinates, self.plan.model.books
        own = [weights[n] for n in self.sites]

        def here() -> Tensor:
            leaves = self.space.leaves()
            theta = [leaves[n].value().reshape(-1).to(torch.float64) for n in coordinates.shapes]
            total = expected(books, coordinates, {}, stats, torch.cat(theta))
            return total + expected_log_joint(self._graph(), own)

        return here

    def _graph(self) -> FactorGraph:
        if not self.sites:
            return FactorGraph((), {}, {}, {}, {})
        args, kwargs = self.prepared.data
        intervention = self.prepared.intervention
        intervention.given = {**intervention.given, **self.space.latents()}
        factors = self.prepared.inference.program.factors(self.sites, args, kwargs, intervention)
        return FactorGraph(factors, {}, {}, {}, {})
