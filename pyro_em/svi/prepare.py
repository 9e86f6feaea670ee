"""From a user's model and guide to a bound that can be climbed, or a refusal that names the site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_em.data import Batch, Batches
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, Program, Survey, survey
from pyro_em.graph.guard import TableGuard
from pyro_em.graph.survey import plate_nesting
from pyro_em.graph.trace import draw_guide, is_latent, is_random
from pyro_em.problem import Problem
from pyro_em.svi.feed import batch_plates, check_guide_follows
from pyro_em.svi.inference import GuideInference
from pyro_em.svi.objective import Objective, choose_objective
from pyro_em.svi.starts import draw_start

__all__ = ["Prepared", "automatic_guide", "no_sites", "prepare"]

Guide = Callable[..., Any]


@dataclass(frozen=True)
class Prepared:
    """A checked model and guide.

    Attributes:
        bound: what is climbed.
        inference: what the fit will say of the latents.
        batch_plates: the plates that batches fill.
        all_inside: whether every site lies in one of them.
    """

    bound: Objective
    inference: GuideInference
    batch_plates: frozenset[str]
    all_inside: bool


def prepare(
    problem: Problem,
    guide: Guide | None,
    elbo: ELBO | None,
    num_particles: int,
    batches: Batches | None,
    fixed: tuple[str, ...] = (),
) -> Prepared:
    """Run guide and model once to find their parameters, put the start in place, and choose the bound.

    A restart first draws its initial values (see :func:`~pyro_em.svi.starts.draw_start`), and ``init`` goes on top.

    Raises:
        ModelError: latents that neither guide nor sum covers; a batch without a plate.
        StartError: initial values on the boundary, or ``init`` that does not fit.
    """
    first = Batch(problem.args, problem.kwargs, 0) if batches is None else next(batches.epoch())
    chosen = (
        guide
        if guide is not None
        else problem.first_run(lambda: automatic_guide(problem.model, (first.args, first.kwargs), batches is not None))
    )
    problem.first_run(lambda: _look(problem, chosen, first))
    problem.space.track()
    if problem.attempt:
        draw_start(problem.space, (problem.model, chosen), lambda: _look(problem, chosen, first), fixed)
        problem.space.track()
    problem.start()
    problem.space.check_start()
    drawn, intervention, seen = _look(problem, chosen, first)
    program = Program(problem.model, max(seen.max_plate_nesting, plate_nesting(drawn)), seen.imputed)
    bound = choose_objective(problem.model, chosen, program, seen, drawn, elbo, num_particles)
    if seen.enumerated and elbo is None:
        with torch.no_grad(), TableGuard():
            graph = program.graph(first.args, first.kwargs, intervention)
        program.verify(graph, first.args, first.kwargs, intervention)
    plates: frozenset[str] = frozenset()
    if batches is not None:
        plates = batch_plates(problem.model, first)
        check_guide_follows(chosen, first, plates)
    latents = [n for n, site in drawn.nodes.items() if is_latent(site)]
    shared = frozenset(n for n in latents if n in seen.trace.nodes and seen.data_plate_of(n) is None)
    inference = GuideInference(program, chosen, problem.space, bool(latents), shared, fixed, guide is None, seen.params)
    return Prepared(bound, inference, plates, all(_is_inside(t, plates) for t in (drawn, seen.trace)))


def _is_inside(trace: poutine.Trace, plates: frozenset[str]) -> bool:
    frames = [{f.name for f in s["cond_indep_stack"]} for s in trace.nodes.values() if is_random(s)]
    return all(names & plates for names in frames)


def _look(problem: Problem, guide: Guide, first: Batch) -> tuple[poutine.Trace, Intervention, Survey]:
    with torch.no_grad():
        drawn, intervention = draw_guide(guide, first.args, first.kwargs, {})
        return drawn, intervention, survey(problem.model, first.args, first.kwargs, intervention)


def automatic_guide(model: Guide, first: tuple[tuple[Any, ...], dict[str, Any]], in_batches: bool) -> Guide:
    """No sites where all latents are finite; a mean-field normal guide over the continuous ones."""
    seen = survey(model, *first, Intervention())
    if not seen.others:
        return no_sites
    unbounded = [n for n in seen.others if getattr(seen.site(n)["fn"].support, "is_discrete", False)]
    if unbounded:
        raise ModelError(
            f"No automatic guide exists for the discrete latents {unbounded}, whose support cannot be enumerated. "
            "Write a guide that samples them and pass it as SVI(guide)."
        )
    local = [n for n in seen.others if seen.data_plate_of(n) is not None]
    if local and in_batches:
        raise ModelError(
            f"The latents {local} have one value per datum, and an automatic guide has no way to carry them from one "
            "minibatch to another. Write an amortised guide that computes them from the batch, and pass it as "
            "SVI(guide)."
        )
    return AutoNormal(poutine.block(model, expose=list(seen.others)))


def no_sites(*args: Any, **kwargs: Any) -> None:
    """A guide for models whose latents are all summed out."""
