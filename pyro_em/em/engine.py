"""What EM's loop runs on, and the choice of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_em.compiled.maximise import Maximiser
from pyro_em.compiled.plan import make_plan
from pyro_em.compiled.report import Row, report, traced_report
from pyro_em.compiled.solve import Guard
from pyro_em.em.checks import Prepared
from pyro_em.em.m_step import GradientMStep
from pyro_em.em.mixed import MixedEngine
from pyro_em.em.tensors import TensorEngine
from pyro_em.em.traced import TracedEngine
from pyro_em.errors import ModelError
from pyro_em.graph import Variable
from pyro_em.params import ParamSpace
from pyro_em.probing import probe

__all__ = ["Engine", "choose_engine"]


class Engine(Protocol):
    """Holds the parameters of a running EM fit, and evaluates and moves them."""

    counts_priors: bool
    breaks: bool  # whether the last M-step dropped a component, so that the objective may have fallen

    @property
    def dtype(self) -> torch.dtype:
        """What limits the meaning of a change of the objective."""
        ...

    @property
    def is_stuck(self) -> bool:
        """Whether the M-step has failed too often in a row."""
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

    def expect(self) -> Any:
        """The E-step at the parameters in place: an object with objective, log_evidence and spread."""
        ...

    def maximise(self, expectation: Any) -> bool:
        """The M-step, in place; whether it was accepted."""
        ...

    def can_gain(self, nats: float) -> bool:
        """Whether a climb of the objective itself would raise it by this much."""
        ...

    def variables(self) -> list[Variable]:
        """The latents that are summed out."""
        ...

    def observed(self, site: str) -> tuple[Variable, Tensor]:
        """The one latent of an observed site, and its data, a row for each copy of that latent."""
        ...

    def place(self, states: Mapping[str, Tensor], chosen: Mapping[str, Tensor]) -> None:
        """Move to the maximum of Q under latents that have been labelled (see :func:`labelled`)."""
        ...

    def finish(self) -> bool:
        """Hand the parameters to the program; whether that moved them by more than rounding."""
        ...


def choose_engine(
    prepared: Prepared,
    space: ParamSpace,
    m_step: GradientMStep | None,
    fixed: tuple[str, ...],
    priors: bool,
    on_degenerate: str = "raise",
) -> tuple[Engine, list[Row]]:
    """The fastest engine that is exact for the model, and a report of who owns which parameter."""
    space.free(fixed)

    def traced(reason: str) -> tuple[Engine, list[Row]]:
        engine = TracedEngine(prepared, space, m_step or GradientMStep(), fixed, priors)
        return engine, traced_report(space.distinct(), fixed, reason)

    if m_step is not None:
        return traced("a gradient M-step was asked for")
    if prepared.stochastic:
        return traced("a plate draws a random part of its data in each iteration")
    program = prepared.inference.program
    try:
        probed = probe(program, space, *prepared.data, prepared.intervention)
    except ModelError as error:
        return traced(f"the model does not run at other parameters: {error}")
    plan = make_plan(probed, prepared.weights, priors, fixed)
    guard = Guard(probed.coordinates, on_degenerate == "floor", plan.model.dtype)
    maximiser = Maximiser(plan.model.books, probed.coordinates, plan.priors, plan.ownership, guard, plan.regressions)
    if plan.is_complete:
        return TensorEngine(plan.model, maximiser, space, fixed, on_degenerate == "drop"), report(plan)
    return MixedEngine(prepared, space, plan, maximiser, priors), report(plan)
