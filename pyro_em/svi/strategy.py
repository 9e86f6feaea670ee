"""SVI: stochastic gradient ascent on L(theta, q) = E_q[log p(x, z; theta) - log q(z)], in theta and the guide together.

With an amortised guide q(z | x; phi) this is the variational autoencoder (Kingma & Welling 2014). Latents that can be
summed out are not sampled at all, so a model with finite latents only is fitted by exact gradients of its log evidence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_em.checked import check_count, check_guide
from pyro_em.data import open_batches, whole
from pyro_em.errors import ModelError
from pyro_em.optim import Optimizer, OptimizerSpec
from pyro_em.problem import Problem
from pyro_em.status import Status
from pyro_em.strategy import Evaluation, StepInfo
from pyro_em.svi.evaluate import Data, bound_over_all, exact_evidence
from pyro_em.svi.feed import Feed, feed
from pyro_em.svi.inference import GuideInference
from pyro_em.svi.objective import Objective
from pyro_em.svi.plateau import Plateau
from pyro_em.svi.prepare import prepare

__all__ = ["SVI", "SVIState"]


@dataclass(frozen=True)
class SVIState:
    """What the next step needs. The optimiser, the batch stream and the smoother advance in place."""

    step: int
    status: Status
    objective: None
    inference: GuideInference
    bound: Objective
    optimizer: Optimizer
    leaves: tuple[Tensor, ...]
    last_good: tuple[Tensor, ...]
    data: Data
    feed: Iterator[Feed]
    plateau: Plateau


@dataclass(frozen=True)
class SVI:
    """Pyro's stochastic variational inference, with the bookkeeping done.

    Args:
        guide: a Pyro guide, amortised or not. ``None``: finite latents are summed out, and continuous ones get an
            ``AutoNormal`` guide.
        optim: a ``pyro.optim`` object, or a callable that makes a torch optimiser from parameters
            (``partial(torch.optim.Adam, lr=1e-3)``). Default: Adam with learning rate 0.01.
        elbo: a Pyro ELBO; ``None`` chooses: ``TraceEnum_ELBO`` where the guide enumerates, our own exact sum where the
            model's finite latents are not in the guide, ``TraceGraph_ELBO`` where the guide samples without
            reparameterisation, else ``Trace_ELBO``.
        max_steps: cap on optimiser updates. Default: 10 000, or none where ``max_epochs`` is given.
        max_epochs: cap on passes over the data; ``None`` for none.
        batch_size: rows a step sees, cut from the tensors that share their first dimension. Sites in the plate over the
            data are scaled by N / batch_size, so the objective is an unbiased estimate of that of all data.
        patience: steps without improvement of the smoothed objective before the run stops; ``None`` never stops early.
        num_particles: draws of the guide per step.
        fixed: names of parameters that stay as they start, to the bit.
        restarts: number of starts, each run to its own end on its own random stream; the one with the best objective
            over all data is kept, and all are in ``history``. After the first, weights of torch's layers are drawn anew
            (``reset_parameters``), and so is what the model draws when it makes its parameters; other parameters are
            moved by standard normal noise in unconstrained coordinates. Values given by ``init`` are kept.

    Raises:
        ValueError: a hyperparameter out of range.
        TypeError: a hyperparameter of another type; a guide that cannot be called, such as the class of one.

    Source: Hoffman et al. (2013), "Stochastic variational inference"; Kingma & Welling (2014).
    """

    guide: Callable[..., Any] | None = None
    optim: OptimizerSpec | None = None
    elbo: ELBO | None = None
    max_steps: int | None = None
    max_epochs: int | None = None
    batch_size: int | None = None
    patience: int | None = 200
    num_particles: int = 1
    fixed: tuple[str, ...] = ()
    restarts: int = 1
    _optim: OptimizerSpec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_guide(self.guide)
        for name in ("max_epochs", "batch_size", "patience"):
            check_count(name, getattr(self, name), optional=True)
        for name in ("num_particles", "restarts"):
            check_count(name, getattr(self, name))
        check_count("max_steps", self.max_steps, 0, optional=True)
        if self.max_steps is None and self.max_epochs is None:
            object.__setattr__(self, "max_steps", 10_000)
        if self.elbo is not None and not isinstance(self.elbo, ELBO):
            raise TypeError(f"elbo must be an instance of pyro.infer.ELBO; got {type(self.elbo).__name__}.")
        object.__setattr__(self, "fixed", (self.fixed,) if isinstance(self.fixed, str) else tuple(self.fixed))
        object.__setattr__(self, "_optim", self.optim or functools.partial(torch.optim.Adam, lr=0.01))

    def init(self, problem: Problem) -> SVIState:
        """Check model and guide, choose the bound, and put the start in place."""
        batches = open_batches(problem.args, problem.kwargs, self.batch_size)
        if batches is None:
            args, kwargs = whole(problem.args, problem.kwargs)
            problem = replace(problem, args=args, kwargs=kwargs)
        prepared = prepare(problem, self.guide, self.elbo, self.num_particles, batches, self.fixed)
        leaves = problem.space.free(self.fixed)
        if not leaves:
            raise ModelError(
                "Model and guide have no parameter to optimise. Declare one with pyro.param, or fix fewer."
            )
        epoch_steps = 1 if batches is None else math.ceil(batches.total / batches.batch_size)
        return SVIState(
            step=0,
            status=Status.RUNNING,
            objective=None,
            inference=prepared.inference,
            bound=prepared.bound,
            optimizer=Optimizer(self._optim, leaves),
            leaves=tuple(leaves.values()),
            last_good=tuple(leaf.detach().clone() for leaf in leaves.values()),
            data=Data(problem.args, problem.kwargs, batches, prepared.batch_plates, prepared.all_inside),
            feed=feed(batches, self.max_epochs),
            plateau=Plateau(self.patience, max(epoch_steps, (self.patience or 10) // 10)),
        )

    def step(self, problem: Problem, state: SVIState) -> tuple[SVIState, StepInfo]:
        """One optimiser update on one batch."""
        fed = next(state.feed)
        args, kwargs, scales = state.data.arguments(fed.batch)
        with pyro.validation_enabled(False) if state.step else nullcontext():
            multiplier = state.data.multiplier(fed.batch)
            objective = multiplier * state.bound.value_and_grad(args, kwargs, scales)
        new = replace(state, step=state.step + 1)
        info = StepInfo(new.step, objective)
        if not math.isfinite(objective):
            _copy(state.last_good, state.leaves)
            return replace(new, status=Status.NON_FINITE), info
        _copy(state.leaves, state.last_good)
        _scale_gradients(state.leaves, multiplier * state.data.vote(fed.batch))
        state.optimizer.step()
        state.optimizer.zero_grad()
        if fed.ends_epoch:
            state.optimizer.end_epoch()
        stop = state.plateau.reached(objective)
        status = Status.PLATEAU if stop else Status.MAX_STEPS if fed.ends_run else Status.RUNNING
        return replace(new, status=status), info

    def evaluate(self, problem: Problem, state: SVIState) -> Evaluation:
        """The bound over all data at the parameters in place, and the exact log evidence where there is one.

        The bound of the last update has not been seen yet: where it is not finite, the update is undone.
        """
        found = self._evaluate(state)
        if math.isfinite(found.objective):
            return found
        _copy(state.last_good, state.leaves)
        return replace(self._evaluate(state), status=Status.NON_FINITE)

    def _evaluate(self, state: SVIState) -> Evaluation:
        with pyro.validation_enabled(False):
            evidence = exact_evidence(state.inference.program, state.data)
            if evidence is not None and not state.inference.guided:
                return Evaluation(evidence, "elbo", evidence)  # nothing is left to the guide: the bound is tight
            objective = bound_over_all(state.bound, state.data)
        return Evaluation(objective, "elbo", evidence)


def _scale_gradients(leaves: tuple[Tensor, ...], factor: float) -> None:
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    if factor != 1.0 and gradients:
        torch._foreach_mul_(gradients, factor)


def _copy(source: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(target), list(source))
