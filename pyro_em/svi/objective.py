"""The bound that is climbed: Pyro's ELBO where the guide covers every latent, our own where the model sums some out.

Latents summed out on the model's side are eliminated by :mod:`pyro_em.graph`, whose gradient is right however far
factors disagree; that of Pyro's log-ring vanishes beyond 16 nats in float32 (36 in float64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.util import torch_item
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, Program, Survey, log_evidence
from pyro_em.graph.trace import can_enumerate, is_latent, run

__all__ = ["Objective", "PyroBound", "SummedBound", "choose_objective"]

Model = Callable[..., Any]


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


@dataclass(frozen=True)
class SummedBound:
    """E_q(c)[log sum_z p(x, z, c) - log q(c)]: latents z summed out exactly given the guide's draw of c.

    Guide sites without a reparameterised sampler contribute their score-function gradient.
    """

    program: Program
    guide: Model
    num_particles: int = 1

    def value_and_grad(self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        total = 0.0
        for _ in range(self.num_particles):
            with torch.enable_grad():
                bound, score = self._particle(args, kwargs, scales)
                surrogate = bound + bound.detach() * score
                (-surrogate / self.num_particles).backward()
            total += float(bound.detach()) / self.num_particles
        return total

    def value(self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        with torch.no_grad():
            draws = [float(self._particle(args, kwargs, scales)[0]) for _ in range(self.num_particles)]
        return sum(draws) / self.num_particles

    def _particle(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]
    ) -> tuple[Tensor, Tensor]:
        drawn, intervention = draw_guide(self.guide, args, kwargs, scales)
        graph = self.program.graph(args, kwargs, intervention)
        log_q = score = torch.zeros((), dtype=torch.float64)
        for name, site in drawn.nodes.items():
            if is_latent(site):
                log_q = log_q + site["log_prob_sum"].to(torch.float64)
                if not getattr(site["fn"], "has_rsample", False):
                    score = score + site["log_prob_sum"].to(torch.float64)
        return log_evidence(graph) - log_q, score


def draw_guide(
    guide: Model, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]
) -> tuple[poutine.Trace, Intervention]:
    """Run the guide, and hand its draws and subsamples to the model's run."""
    intervention = Intervention(scales=scales)
    drawn = run(guide, args, kwargs, intervention)
    drawn.compute_log_prob()
    intervention.given = {n: s["value"] for n, s in drawn.nodes.items() if is_latent(s)}
    return drawn, intervention


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
        ModelError: latents that neither the guide samples nor a sum covers, or sums on both sides.
    """
    if seen.others and elbo is None:
        raise ModelError(
            f"The guide does not sample the latent sites {list(seen.others)}, and they have no finite support to sum over. Add "
            "pyro.sample statements of these names to the guide, or leave the guide out for an automatic one."
        )
    latents = {n: s for n, s in drawn.nodes.items() if is_latent(s)}
    guide_side = [n for n, s in latents.items() if s["infer"].get("enumerate")]
    if elbo is not None:
        return PyroBound(elbo, model, guide, enumerate_model=isinstance(elbo, TraceEnum_ELBO))
    if seen.enumerated and guide_side:
        raise ModelError(
            f"Latents are summed out on both sides: {guide_side} in the guide, {list(seen.enumerated)} in the model. Remove the "
            "first from the guide so that all are summed out exactly, or sample the second in the guide too."
        )
    if seen.enumerated:
        return SummedBound(program, guide, num_particles)
    if guide_side:
        elbo = TraceEnum_ELBO(num_particles=num_particles, max_plate_nesting=program.max_plate_nesting)
        return PyroBound(elbo, model, guide)
    sampled = [n for n, s in latents.items() if not getattr(s["fn"], "has_rsample", False) or can_enumerate(s)]
    kind = TraceGraph_ELBO if sampled else Trace_ELBO
    return PyroBound(kind(num_particles=num_particles), model, guide)
