"""The part of Q that gradients climb: known sites by their statistics, the others by a short run of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.numeric import expected
from pyro_em.compiled.plan import Plan
from pyro_em.em.expectation import Posterior
from pyro_em.em.shares import Share
from pyro_em.graph import expected_log_joint
from pyro_em.params import ParamSpace
from pyro_em.summed import summed

__all__ = ["Part"]


@dataclass(frozen=True)
class Part:
    """Q without what the parameters of the gradient do not move.

    A chain whose initial law alone needs the program, say, is run for its first step only.

    Attributes:
        plan: who owns what.
        space: the parameters.
        sites: those that only the program knows.
    """

    plan: Plan
    space: ParamSpace
    sites: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, space: ParamSpace) -> Part | None:
        """``None`` where the whole of Q is needed: densities of point estimates, or sites by element, move too."""
        moved = plan.gradient.keys()
        estimated = {n for name, params in plan.probed.priors.items() for n in (name, *params)}
        books = {f.name for f in plan.model.factors if not isinstance(f, ElementFactor)}
        touched = [s for s in plan.probed.sites.values() if moved & set(s.params)]
        by_program = [s for s in touched if s.name not in books]
        known = {f.name for f in plan.model.factors}
        if plan.has_unknown_path or moved & estimated or any(s.name in known for s in by_program):
            return None
        return cls(plan, space, tuple(n for s in by_program for n in s.members))

    def q(
        self, data: Callable[[], Iterable[tuple[Share, Posterior]]], stats: tuple[Tensor, ...]
    ) -> Callable[[], Tensor]:
        """Q at the parameters in place, up to a constant, in nats; differentiable in their leaves.

        Args:
            data: makes one pass over all shares, with the posteriors of their sites' cliques.
            stats: expected statistics of the known sites.
        """
        coordinates, books = self.plan.probed.coordinates, self.plan.model.books

        def here() -> Tensor:
            leaves = self.space.leaves()
            theta = [leaves[n].value().reshape(-1).to(torch.float64) for n in coordinates.shapes]
            known = expected(books, coordinates, {}, stats, torch.cat(theta))
            moved = [leaves[n].unconstrained for n in self.plan.gradient if n in leaves]
            return known + summed((self._of_share(share, posterior) for share, posterior in data()), moved)

        return here

    def _of_share(self, share: Share, posterior: Posterior) -> Tensor:
        """What the sites that only the program knows make of some data."""
        return expected_log_joint(share.part(self.sites), [posterior.cliques[n] for n in self.sites])
