"""What SVI knows of the latents: the guide's draws, and exact sums over what the guide leaves out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pyro import poutine
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph import FactorGraph, Intervention, Program, build_graph
from pyro_em.graph.trace import can_enumerate, draw_guide, is_latent, run
from pyro_em.guide_posterior import GuidePosterior
from pyro_em.params import ParamSpace
from pyro_em.posterior import ExactPosterior
from pyro_em.predict import emit
from pyro_em.strategy import EXPLAINED

__all__ = ["GuideInference"]


@dataclass(frozen=True)
class GuideInference:
    """The guide's posterior over some latents, and the exact one over the finite rest given those.

    Attributes:
        program: the model, for sums over the latents the guide leaves out.
        guide: the user's guide, an automatic one, or one without sites.
        space: the fitted parameters.
        guided: whether the guide samples anything.
        global_sites: latents of the guide that lie outside the data's plates.
        fixed: names of parameters that stayed.
        automatic: whether the guide was made here.
        model_params: names of the model's own parameters.
    """

    program: Program
    guide: Callable[..., Any]
    space: ParamSpace
    guided: bool
    global_sites: frozenset[str] = frozenset()
    fixed: tuple[str, ...] = ()
    automatic: bool = False
    model_params: tuple[str, ...] = ()

    weights: ClassVar[Mapping[str, Tensor]] = MappingProxyType({})

    def latents(self) -> dict[str, Tensor]:
        """No latent is point-estimated."""
        return {}

    def explain(self) -> list[dict[str, str]]:
        """Every parameter follows gradients of the bound, but for those that stay."""
        blank = dict.fromkeys(EXPLAINED, "")
        reason = "stochastic gradients of the evidence lower bound"
        moved = {**blank, "owner": "gradient", "reason": reason}
        held = {**blank, "owner": "fixed"}
        return [{**(held if n in self.fixed else moved), "parameter": n} for n in sorted(self.space.leaves())]

    def shared(self, args: tuple[Any, ...], kwargs: dict[str, Any], num_samples: int) -> dict[str, Tensor]:
        """The guide's draws of the latents that all data share; those of single data are left to the model."""
        if not self.global_sites:
            return {}
        with torch.no_grad():
            traces = [draw_guide(self.guide, args, kwargs, {})[0] for _ in range(num_samples)]
        return {n: torch.stack([t.nodes[n]["value"] for t in traces]) for n in self.global_sites}

    def posterior(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExactPosterior | GuidePosterior:
        """The exact posterior where the guide is empty, else one that draws from the guide."""
        if not self.guided:
            return self._exact(args, kwargs)
        guide_alone = functools.partial(run, self.guide, args, kwargs, Intervention())
        draw = functools.partial(self._draw, args, kwargs)
        return GuidePosterior(draw, guide_alone, lambda: self._exact(args, kwargs), self.space.active)

    def _exact(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExactPosterior:
        intervention = Intervention()
        with torch.no_grad():
            graph = self.graph(args, kwargs, intervention).evaluated()
        intervention.refuse_partial()
        return ExactPosterior(graph, {})

    def graph(self, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> FactorGraph:
        """The model given some latents, the finite rest enumerated.

        Raises:
            ModelError: a latent that is neither given nor finite.
        """
        trace = self.program.trace(args, kwargs, intervention)
        known = self.program.ignored | intervention.given.keys()
        others = [n for n, s in trace.nodes.items() if is_latent(s) and not can_enumerate(s) and n not in known]
        if others:
            raise ModelError(
                f"The latents {others} cannot be summed out, so log p(x) is not known exactly; the fit's "
                "objective is a lower bound of it."
            )
        return build_graph(trace, self.program.priors, self.program.ignored)

    def _draw(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], handler: AbstractContextManager[Any]
    ) -> tuple[Any, ExactPosterior]:
        with torch.no_grad():
            with handler:
                drawn, intervention = draw_guide(self.guide, args, kwargs, {})
            graph = self.program.graph(args, kwargs, intervention)
        intervention.refuse_partial()
        return drawn, ExactPosterior(graph, {})

    def sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run as a guide: the guide's own sites, then draws of the rest given them."""
        _, intervention = draw_guide(self.guide, args, kwargs, {})
        with torch.no_grad(), poutine.block(), self.space.active():
            rest = ExactPosterior(self.program.graph(args, kwargs, intervention).evaluated(), {})
        emit(rest)
