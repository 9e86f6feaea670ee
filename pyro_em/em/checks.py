"""From a user's model to something EM can iterate on, or a refusal that names the site and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from pyro_em.data import whole
from pyro_em.em.inference import ExactInference
from pyro_em.errors import ModelError
from pyro_em.graph import FactorGraph, Intervention, Program, Survey, survey
from pyro_em.graph.guard import TableGuard
from pyro_em.graph.trace import Site
from pyro_em.problem import Problem

__all__ = ["Arguments", "Prepared", "prepare"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Prepared:
    """A checked model.

    Attributes:
        data: the model's arguments, all data at once.
        inference: sums out its latents.
        intervention: holds the subsample of plates.
        stochastic: whether a subsample leaves data out.
        graph: the model at the start.
    """

    data: Arguments
    inference: ExactInference
    intervention: Intervention
    stochastic: bool
    graph: FactorGraph


def prepare(problem: Problem) -> Prepared:
    """Run the model plainly, refuse what cannot be summed out, find its parameters and check one enumerated run.

    Raises:
        ModelError: a latent that EM cannot treat, or a model with nothing to do.
        StartError: initial values on the boundary, or ``init`` that does not fit.
    """
    intervention = Intervention()
    data = whole(problem.args, problem.kwargs)
    seen = problem.first_run(lambda: survey(problem.model, *data, intervention))
    for name in seen.others:
        _check_global(name, seen)
        site = seen.site(name)
        problem.space.add_latent(name, _initial_value(site), site["fn"].support)
    problem.space.track()
    if not seen.enumerated and not problem.space.leaves():
        raise ModelError(
            "The model has no latent to sum out and no parameter to maximise over. Declare parameters with pyro.param, "
            "or latents with pyro.sample without obs=."
        )
    problem.start()
    problem.space.check_start()
    program = Program(problem.model, seen.max_plate_nesting, seen.imputed, frozenset(seen.others))
    inference = ExactInference(program, problem.space)
    with torch.no_grad(), TableGuard():
        graph = inference.graph(*data, intervention)
    program.verify(graph, *data, intervention)
    return Prepared(data, inference, intervention, bool(seen.subsampled), graph)


def _check_global(name: str, seen: Survey) -> None:
    site = seen.site(name)
    kind = type(_innermost(site["fn"])).__name__
    if getattr(site["fn"].support, "is_discrete", False):
        raise ModelError(
            f"EM sums out latents with finite support, one at a time. Site {name!r} is a discrete latent ({kind}"
            f"{_event(site)}) whose support Pyro cannot enumerate. If it is a vector, move its elements into a "
            "pyro.plate instead of .to_event(); if it is unbounded, truncate it to a Categorical; or use "
            "strategy=SVI(guide)."
        )
    plate = seen.data_plate_of(name)
    if plate is not None:
        raise ModelError(
            f"EM sums out latents with finite support. Site {name!r} is {kind}. Give it a guide with "
            f"strategy=SVI(guide), or point-estimate it by moving it out of plate {plate!r}."
        )


def _innermost(fn: object) -> object:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _event(site: Site) -> str:
    return f" with event shape {tuple(site['fn'].event_shape)}" if site["fn"].event_dim else ""


def _initial_value(site: Site) -> Tensor:
    """The prior median, as Pyro's autoguides start; a draw for vectors, lest components start equal and never part."""
    return site["value"] if site["fn"].event_dim else init_to_median(site)
