"""What EM's loop runs on, and the choice of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_em.compiled import TensorModel
from pyro_em.compiled.maximise import Maximiser
from pyro_em.compiled.plan import Plan, connected, known_sites, make_plan
from pyro_em.compiled.report import Row, report, traced_report
from pyro_em.compiled.solve import Guard
from pyro_em.em.agreement import Agreement
from pyro_em.em.batched import BatchedModel
from pyro_em.em.checks import Prepared
from pyro_em.em.m_step import GradientMStep
from pyro_em.em.mixed import MixedEngine
from pyro_em.em.reading import Reader, open_reader
from pyro_em.em.shares import Stream, whole
from pyro_em.em.tensors import TensorEngine
from pyro_em.em.traced import TracedEngine
from pyro_em.errors import ModelError
from pyro_em.graph import FactorGraph, Variable
from pyro_em.params import ParamSpace
from pyro_em.probing import Opaque, Probed, probe

__all__ = ["Engine", "Options", "choose_engine", "program_itself"]


class Engine(Protocol):
    """Holds the parameters of a running EM fit, and evaluates and moves them."""

    counts_priors: bool
    breaks: bool  # whether the last M-step dropped a component, so that the objective may have fallen
    runs_program: bool  # whether each step does

    @property
    def dtype(self) -> torch.dtype:
        """What limits the meaning of a change of the objective."""
        ...

    @property
    def is_stuck(self) -> bool:
        """Whether the M-step has failed too often in a row."""
        ...

    @property
    def undefined(self) -> tuple[str, ...]:
        """Parameters in which the gradient of the objective was infinite or NaN at the last :meth:`can_gain`."""
        ...

    @property
    def has_free(self) -> bool:
        """Whether there is a parameter to move."""
        ...

    def point(self) -> Any:
        """The parameters, for :meth:`move`."""
        ...

    def move(self, point: Any) -> None:
        """Put parameters back."""
        ...

    def coordinates(self) -> Tensor:
        """The free parameters in unconstrained coordinates, one vector, float64."""
        ...

    def move_to(self, vector: Tensor) -> None:
        """Put the free parameters at a point of :meth:`coordinates`."""
        ...

    def values(self) -> Tensor:
        """The free parameters as they are, one vector, float64."""
        ...

    def is_near_edge(self) -> bool:
        """Whether one of them is a probability next to zero or one."""
        ...

    def expect(self) -> Any:
        """The E-step at the parameters in place: an object with objective, log_evidence and spread."""
        ...

    def maximise(self, expectation: Any) -> bool:
        """The M-step, in place; whether it was accepted."""
        ...

    def refuse(self, expectation: Any) -> None:
        """Raise DegenerateError where a component has collapsed that no M-step has seen."""
        ...

    def can_gain(self, nats: float, keep: bool = False) -> bool:
        """Whether a climb of the objective itself would raise it by this much; and, with ``keep``, stay there."""
        ...

    def variables(self) -> list[Variable]:
        """The latents that are summed out."""
        ...

    def block_size(self) -> int:
        """Dimensions of the largest covariance that a start must be able to tell."""
        ...

    def observed(self, site: str) -> tuple[tuple[Variable, ...], Tensor]:
        """The one latent of an observed site, or those of its like along a chain; and the data, a row for each copy of
        a latent, those of one time after the other's.
        """
        ...

    def place(self, states: Mapping[str, Tensor], chosen: Mapping[str, Tensor], rest: float = 0.0) -> None:
        """Move to the maximum of Q under latents that have been labelled (see :func:`labelled`)."""
        ...

    def is_held(self) -> bool:
        """Whether a spread is at its floor."""
        ...

    def slack(self, expectation: Any) -> float:
        """What rounding can take from the objective at worst, nats."""
        ...

    def noise(self, expectation: Any) -> float:
        """Rounding errors of the objective, nats."""
        ...

    def agrees(self) -> bool:
        """Whether the program, at the parameters in place, says what this engine says."""
        ...

    def finish(self) -> bool:
        """Hand the parameters to the program; whether that moved them by more than rounding."""
        ...


DISAGREES = "the program is not what it was at the values where it was probed"


def program_itself(
    prepared: Prepared, space: ParamSpace, options: Options, stream: Stream | None
) -> tuple[Engine, list[Row]]:
    """The engine that takes any model, at the parameters in place, which need not be those of the start."""
    return _traced(prepared, space, options, stream, DISAGREES, None)


@dataclass(frozen=True)
class Options:
    """What a strategy asks of an engine.

    Attributes:
        m_step: a gradient M-step for all parameters; ``None``, the best for each.
        fixed: names of parameters that stay.
        priors: whether densities of point estimates count.
        on_degenerate: what to do about components that collapse.
    """

    m_step: GradientMStep | None
    fixed: tuple[str, ...]
    priors: bool
    on_degenerate: str


def choose_engine(
    prepared: Prepared, space: ParamSpace, options: Options, stream: Stream | None
) -> tuple[Engine, list[Row]]:
    """The fastest engine that is exact for the model, and a report of who owns which parameter."""
    space.free(options.fixed)
    agreement = Agreement(prepared, space)
    probed = _probe(prepared, space, options, agreement)
    if isinstance(probed, str):
        return _traced(prepared, space, options, stream, probed, prepared.at_start)
    if stream is not None:
        return _in_batches(prepared, space, options, stream, probed, agreement)
    plan = make_plan(probed, prepared.weights, options.priors, options.fixed)
    maximiser = _maximiser(plan, options)
    if plan.is_complete and agreement.holds(plan.probed.coordinates.flat(space.values()), plan.model, prepared.graph):
        return _tensors(plan.model, maximiser, space, options, agreement), report(plan)
    if plan.is_complete:
        return _traced(prepared, space, options, stream, DISAGREES, prepared.at_start)
    drops = options.on_degenerate == "drop"
    return MixedEngine(prepared, space, plan, maximiser, options.priors, drops), report(plan)


def _in_batches(
    prepared: Prepared, space: ParamSpace, options: Options, stream: Stream, probed: Probed, agreement: Agreement
) -> tuple[Engine, list[Row]]:
    """The same over data in batches, of which the first was probed."""
    known = known_sites(probed)
    reader = open_reader(probed, known, connected(known, options.fixed), stream, space)
    if reader is None:
        reason = "in batches, closed forms need arguments that come about alike in all of them"
        return _traced(prepared, space, options, stream, reason, None)
    probed = replace(probed, sites={**probed.sites, **reader.known})
    plan = make_plan(probed, prepared.weights, options.priors, options.fixed, reader.union)
    maximiser, rows = _maximiser(plan, options), report(_of_all_batches(plan, reader))
    batches, drops = BatchedModel(plan.model, reader, stream), options.on_degenerate == "drop"
    if plan.is_complete:
        return _tensors(batches, maximiser, space, options, agreement), rows
    return MixedEngine(prepared, space, plan, maximiser, options.priors, drops, batches), rows


def _of_all_batches(plan: Plan, reader: Reader) -> Plan:
    """The plan with the routes of all batches, to report on."""
    routes = {n: replace(plan.probed.sites[n], routes=reader.union.sites[n].routes) for n in reader.varying}
    return replace(plan, probed=replace(plan.probed, sites={**plan.probed.sites, **routes}))


def _maximiser(plan: Plan, options: Options) -> Maximiser:
    coordinates, model = plan.probed.coordinates, plan.model
    guard = Guard(coordinates, options.on_degenerate == "floor", model.dtype)
    return Maximiser(model.books, coordinates, plan.priors, plan.ownership, guard, plan.regressions)


def _tensors(
    model: TensorModel | BatchedModel, maximiser: Maximiser, space: ParamSpace, options: Options, agreement: Agreement
) -> TensorEngine:
    return TensorEngine(model, maximiser, space, options.fixed, options.on_degenerate == "drop", agreement)


def _probe(prepared: Prepared, space: ParamSpace, options: Options, agreement: Agreement) -> Probed | str:
    """How parameters reach the model, or why everything is left to the traced gradient."""
    if options.m_step is not None:
        return "a gradient M-step was asked for"
    if prepared.stochastic:
        return "a plate draws a random part of its data in each iteration"
    program = prepared.inference.program
    whole = prepared.head is prepared.data
    try:
        # Of large data, gradients are followed on the first rows only: all of it would take the memory of tables.
        few = whole or _has_detached(agreement.probed)
        found = prepared.found if whole else None
        return probe(program, space, *prepared.data, prepared.intervention, gradients=few, found=found)
    except ModelError as error:
        return f"the model does not run at other parameters: {error}"


def _has_detached(probed: Probed) -> bool:
    """Whether a route is one by values but not by gradients."""
    routes = [r for s in probed.sites.values() for r in s.routes.values()]
    return any(isinstance(r, Opaque) and "detached" in r.reason for r in routes)


def _traced(
    prepared: Prepared,
    space: ParamSpace,
    options: Options,
    stream: Stream | None,
    reason: str,
    graph: FactorGraph | None,
) -> tuple[Engine, list[Row]]:
    m_step = options.m_step or GradientMStep()
    rows = traced_report(space.distinct(), options.fixed, reason)
    if stream is not None:
        return TracedEngine(prepared, space, m_step, options.fixed, options.priors, stream), rows
    return TracedEngine(prepared, space, m_step, options.fixed, options.priors, whole(prepared), graph), rows
