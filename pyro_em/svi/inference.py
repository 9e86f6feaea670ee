"""What SVI knows of the latents: the guide's draws, and exact sums over what the guide leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_em.graph import Intervention, Program
from pyro_em.guide_posterior import GuidePosterior
from pyro_em.params import ParamSpace
from pyro_em.posterior import ExactPosterior
from pyro_em.predict import emit
from pyro_em.svi.objective import draw_guide

__all__ = ["GuideInference"]


@dataclass(frozen=True)
class GuideInference:
    """The guide's posterior over some latents, and the exact one over the finite rest given those.

    Attributes:
        program: the model, for sums over the latents the guide leaves out.
        guide: the user's guide, an automatic one, or one without sites.
        space: the fitted parameters.
        guided: whether the guide samples anything.
    """

    program: Program
    guide: Callable[..., Any]
    space: ParamSpace
    guided: bool

    def latents(self) -> dict[str, Tensor]:
        """No latent is point-estimated."""
        return {}

    def posterior(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExactPosterior | GuidePosterior:
        """The exact posterior where the guide is empty, else one that draws from the guide."""
        if not self.guided:
            return self._exact(args, kwargs)
        return GuidePosterior(lambda: self._draw(args, kwargs), self.space.active)

    def _exact(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExactPosterior:
        intervention = Intervention()
        with torch.no_grad():
            graph = self.program.graph(args, kwargs, intervention)
        intervention.refuse_partial()
        return ExactPosterior(graph, {})

    def _draw(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ExactPosterior]:
        with torch.no_grad():
            drawn, intervention = draw_guide(self.guide, args, kwargs, {})
            graph = self.program.graph(args, kwargs, intervention)
        intervention.refuse_partial()
        return drawn, ExactPosterior(graph, {})

    def sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run as a guide: the guide's own sites, then draws of the rest given them."""
        _, intervention = draw_guide(self.guide, args, kwargs, {})
        with torch.no_grad(), poutine.block():
            rest = ExactPosterior(self.program.graph(args, kwargs, intervention), {})
        emit(rest)
