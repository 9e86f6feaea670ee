"""The bound that is climbed: Pyro's ELBO where the guide covers every latent, our own where the model sums some out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.util import torch_item

from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, Program, Survey
from pyro_em.graph.trace import Model, Site, can_enumerate, is_latent
from pyro_em.svi.summed import SummedBound

__all__ = ["Objective", "PyroBound", "choose_objective"]


class Objective(Protocol):
    """A stochastic bound on the log evidence, in total nats."""

    def value_and_grad(self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        """An unbiased estimate; the gradient of its negative is added to the leaves' ``.grad``."""
        ...

    def value(self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        """An unbiased estimate, no gradient."""
        ...


@dataclass(frozen=True)
class PyroBound:
    """One of Pyro's ELBOs, the model and guide being unchanged but for the scale of a minibatch."""

    elbo: ELBO
    model: Model
    guide: Model
    enumerate_model: bool = False

    def value_and_grad(self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        loss = self.elbo.loss_and_grads(
            self._scaled(self.model, scales), self._scaled(self.guide, scales), *args, **kwargs
        )
        return -torch_item(loss)

    def value(self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        loss = self.elbo.loss(self._scaled(self.model, scales), self._scaled(self.guide, scales), *args, **kwargs)
        return -torch_item(loss)

    def _scaled(self, program: Model, scales: dict[str, float]) -> Model:
        enumerate_all = self.enumerate_model and program is self.model
        if not scales and not enumerate_all:
            return program
        return Intervention(scales=scales, enumerate_all=enumerate_all)(program)


def choose_objective(
    model: Model,
    guide: Model,
    program: Program,
    seen: Survey,
    drawn: poutine.Trace,
    elbo: ELBO | None,
    num_particles: int,
) -> Objective:
    """The bound for a model and guide: the user's, or the one their latents call for.

    Args:
        seen: the model run given the guide's draws: what it still enumerates is summed out on its side.
        drawn: a trace of the guide.

    Raises:
        ModelError: latents that neither the guide samples nor a sum covers, or sums on both sides; latents of the guide
            that the model observes, or does not have.
    """
    if seen.others and elbo is None:
        raise ModelError(
            f"The guide does not sample the latent sites {list(seen.others)}, and they have no finite support to sum "
            "over. Add pyro.sample statements of these names to the guide, or leave the guide out for an automatic one."
        )
    latents = {n: s for n, s in drawn.nodes.items() if is_latent(s)}
    _refuse_observed(latents, seen.trace)
    strangers = [n for n, s in latents.items() if n not in seen.trace.nodes and not s["infer"].get("is_auxiliary")]
    if strangers:
        raise ModelError(
            f"The latents {strangers} of the guide are not in the model, so the bound would count their density on one "
            "side only. Correct the names, or mark draws the guide needs for itself with infer={'is_auxiliary': True}."
        )
    guide_side = [n for n, s in latents.items() if s["infer"].get("enumerate")]
    if elbo is not None:
        return PyroBound(elbo, model, guide, enumerate_model=isinstance(elbo, TraceEnum_ELBO))
    if seen.enumerated and guide_side:
        raise ModelError(
            f"Latents are summed out on both sides: {guide_side} in the guide, {list(seen.enumerated)} in the model. "
            "Remove the first from the guide so that all are summed out exactly, or sample the second in the guide too."
        )
    if seen.enumerated or seen.imputed or seen.has_missing:
        return SummedBound(program, guide, num_particles)
    if guide_side:
        elbo = TraceEnum_ELBO(num_particles=num_particles, max_plate_nesting=program.max_plate_nesting)
        return PyroBound(elbo, model, guide)
    sampled = [n for n, s in latents.items() if not getattr(s["fn"], "has_rsample", False) or can_enumerate(s)]
    kind = TraceGraph_ELBO if sampled else Trace_ELBO
    elbo = kind(num_particles=num_particles, max_plate_nesting=program.max_plate_nesting)
    return PyroBound(elbo, model, guide)


def _refuse_observed(latents: dict[str, Site], model: poutine.Trace) -> None:
    """The model ignores such a draw, so that the bound would gain the entropy of its distribution and no more."""
    observed = [
        n
        for n, site in latents.items()
        if n in model.nodes and model.nodes[n]["is_observed"] and not site["infer"].get("is_auxiliary")
    ]
    if observed:
        raise ModelError(
            f"The guide samples {observed}, which the model observes, so the bound would grow by the entropy "
            "of these draws. A guide samples latents only: leave out there what is observed (`if y is None: "
            "pyro.sample('y', ...)`), or mark draws the guide needs for itself with infer={'is_auxiliary': True}."
        )
