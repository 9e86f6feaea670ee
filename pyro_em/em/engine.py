"""What EM's loop runs on, and the choice of it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_em.compiled import tensor_model
from pyro_em.compiled.maximise import Maximiser
from pyro_em.compiled.ownership import share_out
from pyro_em.compiled.priors import Prior
from pyro_em.compiled.solve import Guard
from pyro_em.em.checks import Prepared
from pyro_em.em.m_step import GradientMStep
from pyro_em.em.tensors import TensorEngine
from pyro_em.em.traced import TracedEngine
from pyro_em.graph.build import site_scale
from pyro_em.params import ParamSpace
from pyro_em.probing import Selected, probe

__all__ = ["Engine", "choose_engine"]


class Engine(Protocol):
    """Holds the parameters of a running EM fit, and evaluates and moves them."""

    counts_priors: bool

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

    def finish(self) -> bool:
        """Hand the parameters to the program; whether that moved them by more than rounding."""
        ...


def choose_engine(
    prepared: Prepared, space: ParamSpace, m_step: GradientMStep | None, fixed: tuple[str, ...], priors: bool
) -> tuple[Engine, Any]:
    """The fastest engine that is exact for the model."""
    space.free(fixed)
    traced = TracedEngine(prepared, space, m_step or GradientMStep(), fixed, priors)
    if m_step is not None or prepared.stochastic:
        return traced, None
    program = prepared.inference.program
    try:
        probed = probe(program, space, *prepared.data, prepared.intervention)
    except Exception as error:
        return traced, str(error)
    sites = [s for n, s in probed.sites.items() if n not in program.priors]
    if any(isinstance(s.parts, str) or not all(isinstance(r, Selected) for r in s.routes.values()) for s in sites):
        return traced, None
    scales = {s.name: site_scale(s.name, probed.found.sites[s.name]) for s in sites}
    prior = {n: Prior(n, probed.found.sites[n]) for n in program.priors}
    model = tensor_model(sites, probed.coordinates, scales, {})
    ownership = share_out(model.books, probed.coordinates, prior if priors else {}, fixed)
    guard = Guard(probed.coordinates, False, model.dtype)
    maximiser = Maximiser(model.books, probed.coordinates, prior if priors else {}, ownership, guard)
    return TensorEngine(model, maximiser, space, fixed), ownership
