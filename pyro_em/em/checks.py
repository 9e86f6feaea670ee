"""From a user's model to something EM can iterate on, or a refusal that names the site and the way out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import pyro
import torch
from pyro.distributions import ImproperUniform
from pyro.infer.autoguide.initialization import init_to_median
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_em.data import Batch, first_rows
from pyro_em.em.inference import ExactInference
from pyro_em.em.weights import plate_weights
from pyro_em.errors import ModelError
from pyro_em.graph import FactorGraph, Intervention, Program, Survey, survey
from pyro_em.graph.build import Structure, graph_of, plates_of, structure
from pyro_em.graph.core import core_of
from pyro_em.graph.guard import JointStates, JointStatesError, TableGuard
from pyro_em.graph.plan import MAX_TABLE
from pyro_em.graph.trace import Site, is_random
from pyro_em.problem import Problem
from pyro_em.rng import aside

__all__ = ["Arguments", "Look", "Prepared", "is_small", "look_at", "prepare"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


LARGE = 20_000  # rows; of more than these, structure is read off and checked on the first few
LARGE_TABLE = 2**20  # numbers in the data, likewise
HEAD = 512
LONG = 50  # latents, beyond which it takes time to look at each operation of a run
CERTAIN = MAX_TABLE // 256  # numbers at the sites; operations between them make tables of a few times as many


@dataclass(frozen=True)
class Look:
    """A first run of the model, whose parameters are in place where the fit starts.

    Attributes:
        data: the model's arguments, all data at once.
        head: the first rows of large data, of small data all.
        intervention: holds the subsample of plates.
        seen: the roles of its sites.
        moved: whether the caller's start is elsewhere than where the run was.
    """

    data: Arguments
    head: Arguments
    intervention: Intervention
    seen: Survey
    moved: bool


@dataclass(frozen=True)
class Prepared:
    """A checked model.

    Attributes:
        data: the model's arguments, all data at once.
        head: the first rows of large data, of small data all.
        inference: sums out its latents.
        intervention: holds the subsample of plates.
        stochastic: whether a subsample leaves data out.
        found, graph: the model at the start, on ``head``.
        weights: how often each datum counts, by plate, of all data.
        seen: the roles of its sites.
    """

    data: Arguments
    head: Arguments
    inference: ExactInference
    intervention: Intervention
    stochastic: bool
    found: Structure
    graph: FactorGraph
    weights: dict[str, Tensor]
    seen: Survey

    @property
    def at_start(self) -> FactorGraph | None:
        """The graph of all data at the start; ``None`` where the one at hand is of the first rows."""
        return self.graph if self.head is self.data else None


def look_at(problem: Problem, data: Arguments) -> Look:
    """Run the model plainly, refuse what cannot be summed out, find its parameters and put the start in place.

    Raises:
        ModelError: a latent that EM cannot treat, or a model with nothing to do.
        StartError: initial values on the boundary, or ``init`` that does not fit.
    """
    intervention, state = Intervention(any_state=True), get_rng_state()
    seen, head = _first_look(problem, data, intervention)
    for name in seen.others:
        _check_global(name, seen)
        site = seen.site(name)
        with aside():  # however many data the run has drawn latents for, the same start
            set_rng_state(state)
            start = _initial_value(site)
        problem.space.add_latent(name, start, site["fn"].support)
    problem.space.track()
    if not seen.enumerated and not problem.space.leaves():
        raise ModelError(
            "The model has no latent to sum out and no parameter to maximise over. Declare parameters with pyro.param, "
            "or latents with pyro.sample without obs=."
        )
    drawn_at = problem.space.snapshot()
    problem.start()
    problem.space.check_start()
    return Look(data, head, intervention, seen, _moved(problem, drawn_at))


def prepare(problem: Problem, first: Look) -> Prepared:
    """Check one enumerated run at the parameters in place.

    Raises:
        ModelError: a latent that EM cannot treat.
    """
    data, head, intervention, seen = first.data, first.head, first.intervention, first.seen
    program = Program(problem.model, seen.max_plate_nesting, seen.imputed, frozenset(seen.others))
    inference = ExactInference(program, problem.space)
    look = intervention if head is data else Intervention()
    with torch.no_grad():
        look.given = problem.space.latents()
        found, graph = _enumerated(program, head, look, first)
    program.verify(graph, *head, look, None if seen.others or first.moved else seen)
    weights: dict[str, Tensor] = {}
    if problem.weights is not None:
        sizes = _plate_sizes(program, data, intervention, graph, head)
        weights = plate_weights(problem.weights, seen, sizes)
    return Prepared(data, head, inference, intervention, bool(seen.subsampled), found, graph, weights, seen)


def _enumerated(program: Program, head: Arguments, look: Intervention, first: Look) -> tuple[Structure, FactorGraph]:
    """The first enumerated run, none of whose tables may be too large.

    Of a long loop, whose latents take turns at a few dimensions, few joint states already show that none is. Nor does
    it validate its distributions once more, if the first run has done so at the same parameters.
    """
    seen = first.seen

    def run() -> tuple[Structure, FactorGraph]:
        found = structure(program.trace(*head, look), program.ignored)
        return found, graph_of(found, program.priors)

    if len(seen.enumerated) > LONG:
        look.joint = JointStates(CERTAIN / seen.widest)
        try:
            with nullcontext() if first.moved else pyro.validation_enabled(False):
                return run()
        except JointStatesError:
            pass
        finally:
            look.joint = None
    with TableGuard():
        return run()


def _moved(problem: Problem, before: dict[str, Tensor]) -> bool:
    """Whether parameters have changed."""
    return any(not torch.equal(before[n], leaf.unconstrained) for n, leaf in problem.space.leaves().items())


def _plate_sizes(
    program: Program, data: Arguments, intervention: Intervention, graph: FactorGraph, head: Arguments
) -> dict[str, int]:
    """Sizes of the plates on all data."""
    if head is data:
        return {p.name: p.size for f in graph.factors for p in f.plates}
    with torch.no_grad(), pyro.validation_enabled(False):
        nodes = program.trace(*data, intervention).nodes.values()
    found = [plates_of(site, site["fn"].batch_shape) for site in nodes if is_random(site)]
    return {p.name: p.size for plates in found for p in plates.values()}


def _first_look(problem: Problem, data: Arguments, intervention: Intervention) -> tuple[Survey, Arguments]:
    """One plain run: on all data, or, as latents drawn for a million data would fill the memory, on the first rows.

    The parameters' initial values are those of the whole data in either case.
    """
    head = _head(data)
    if head is not None:
        state = get_rng_state()
        try:
            seen = survey(problem.model, head.args, head.kwargs, Intervention(any_state=True))
        except Exception:  # the model knows its size; the run on all data says what is wrong, if anything
            seen = None
        problem.space.forget()
        set_rng_state(state)
        if seen is not None and not seen.subsampled and _starts_alike(problem, data, seen):
            return seen, (head.args, head.kwargs)
        problem.space.forget()
        set_rng_state(state)
    return problem.first_run(lambda: survey(problem.model, *data, intervention)), data


def is_small(data: Arguments) -> bool:
    """Whether data are few enough to look at all of them."""
    return _head(data) is None


def _head(data: Arguments) -> Batch | None:
    """The first rows of large data; ``None`` of small data."""
    args, kwargs = data
    shown = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim() and len(a)]
    width = max((prod(a.shape[1:]) for a in shown), default=1)
    rows = len(shown[0]) if shown else 0
    if rows <= LARGE and rows * width <= LARGE_TABLE:
        return first_rows(args, kwargs, rows)  # sparse rows are looked at as dense ones, however few they are
    return first_rows(args, kwargs, max(16, min(HEAD, LARGE_TABLE // (4 * max(width, 1)))))


def _starts_alike(problem: Problem, data: Arguments, seen: Survey) -> bool:
    """Run the model on all data, latents enumerated, and compare its sites with those of a run on the first rows."""
    program = Program(problem.model, seen.max_plate_nesting, seen.imputed, frozenset(seen.others))
    given = {n: seen.site(n)["value"] for n in seen.others}
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            trace = program.trace(*data, Intervention(given=given))
        except Exception:
            return False
    return [n for n, s in trace.nodes.items() if is_random(s)] == [
        n for n, s in seen.trace.nodes.items() if is_random(s)
    ]


def _check_global(name: str, seen: Survey) -> None:
    site = seen.site(name)
    kind = type(core_of(site["fn"]).fn).__name__
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


def _event(site: Site) -> str:
    return f" with event shape {tuple(site['fn'].event_shape)}" if site["fn"].event_dim else ""


def _initial_value(site: Site) -> Tensor:
    """The prior median, as Pyro's autoguides start; a draw for vectors, lest components start equal and never part."""
    is_improper = isinstance(core_of(site["fn"]).fn, ImproperUniform)  # drawn anywhere, and without a median
    return site["value"] if site["fn"].event_dim or is_improper else init_to_median(site)
