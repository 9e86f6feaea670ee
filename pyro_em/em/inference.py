"""What EM knows of the latents: exact posteriors of the finite ones, point estimates of the global ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pyro import poutine
from torch import Tensor

from pyro_em.garbage import no_collection
from pyro_em.graph import Factor, FactorGraph, Intervention, Program
from pyro_em.graph.build import Structure, graph_of, structure
from pyro_em.params import ParamSpace
from pyro_em.posterior import ExactPosterior
from pyro_em.predict import emit

__all__ = ["ExactInference"]


@dataclass(frozen=True)
class ExactInference:
    """Sums out every finite latent of ``program``, at the parameters in ``space``."""

    program: Program
    space: ParamSpace
    report: tuple[dict[str, str], ...] = ()
    fixed: tuple[str, ...] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    guided: ClassVar[bool] = False
    guide: ClassVar[None] = None

    def graph(self, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> FactorGraph:
        """The factor graph at the parameters in place."""
        return graph_of(self.structure(args, kwargs, intervention), self.program.priors)

    def structure(self, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> Structure:
        """A run at the parameters in place, before any density is evaluated."""
        intervention.given = {**intervention.given, **self.space.latents()}
        return structure(self.program.trace(args, kwargs, intervention), self.program.ignored)

    def factors(
        self, names: Collection[str], args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention
    ) -> tuple[Factor, ...]:
        """The factors of some sites, from a run that ends at the last of them."""
        if not names:
            return ()
        intervention.given = {**intervention.given, **self.space.latents()}
        return self.program.factors(names, args, kwargs, intervention)

    def explain(self) -> list[dict[str, str]]:
        """Who owns which parameter."""
        return list(self.report)

    def latents(self) -> dict[str, Tensor]:
        """Values of the point-estimated latents."""
        return {name: value.detach() for name, value in self.space.latents().items()}

    @no_collection()
    def posterior(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExactPosterior:
        """The exact posterior given the model's arguments."""
        intervention = Intervention()
        with torch.no_grad():
            graph = self.graph(args, kwargs, intervention).evaluated()
        intervention.refuse_partial()
        return ExactPosterior(graph, self.latents())

    def shared(self, args: tuple[Any, ...], kwargs: dict[str, Any], num_samples: int) -> dict[str, Tensor]:
        """The point estimates, repeated."""
        return {n: v.expand(num_samples, *v.shape) for n, v in self.latents().items()}

    def sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run as a guide: joint draws from the exact posterior."""
        with poutine.block(), self.space.active():  # in this order: what restores zeros must see the parameters
            posterior = self.posterior(args, kwargs)
        emit(posterior)
