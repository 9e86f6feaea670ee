"""One call and one loop, whatever the strategy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_em.checked import callables
from pyro_em.data import hinting
from pyro_em.errors import StartError
from pyro_em.params import ParamSpace
from pyro_em.problem import Problem
from pyro_em.restarts import Record, run_all
from pyro_em.result import FitResult
from pyro_em.rng import isolated_rng
from pyro_em.status import Status
from pyro_em.strategy import StepInfo, Strategy

__all__ = ["fit"]

Callback = Callable[[StepInfo], Any]


def fit(
    model: Callable[..., Any],
    *args: Any,
    strategy: Strategy,
    seed: int | None = None,
    init: Mapping[str, Tensor] | FitResult | None = None,
    weights: Tensor | Mapping[str, Tensor] | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    **kwargs: Any,
) -> FitResult:
    """Fit a Pyro model by the strategy given and leave no trace of it in Pyro, torch or the model.

    Both strategies climb L(theta, q) = log p(x; theta) - KL(q || p(z | x; theta)), in total nats.

    Args:
        model: any Pyro model, unchanged: no ``config_enumerate``, no ``max_plate_nesting``.
        *args, **kwargs: handed to the model as they are. One positional argument may be a
            ``torch.utils.data.DataLoader`` whose batches are unpacked into the model's arguments. It must show all of
            its data set, in order or shuffled; what ``drop_last=True`` leaves out, only steps of SVI do without.
        strategy: ``EM(...)`` or ``SVI(guide, ...)``.
        seed: start of the fit's own random stream; ``None`` copies the caller's present state.
        init: starting values by name, or an earlier result of any strategy (names it shares with the model are used);
            ``None`` starts from the model's own.
        weights: under EM, how often each datum counts: one number, not negative, for each element of the outermost data
            plate, or a mapping from the name of a plate. A weight of two is a datum that is there twice.
        callbacks: called with each step's :class:`StepInfo`; one that returns ``True`` stops the fit, further restarts
            included, and the best so far is kept. Under EM the parameters live outside of Pyro's store until the fit is
            over.
        progress: a progress bar; ``None`` shows one for fits of more than a second, ``False`` is silence.

    Returns:
        The fitted model as an immutable result. The global param store, the random state, the tensors passed in and the
        model's modules are as they were before the call, also when it raises.

    Raises:
        ModelError: the strategy cannot treat the model; the message names the site and the way out.
        StartError: starting values that cannot be used, or an earlier result that shares no name with the model.
        ValueError: weights for a strategy that takes none, or that do not fit the data; a loader with a sampler of its
            own.
        TypeError: ``strategy`` is not a strategy object; ``init`` has no names; a callback that cannot be called.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from pyro_em import EM, fit
    >>> def model(x):
    ...     p = pyro.param("p", torch.tensor(0.3), constraint=dist.constraints.unit_interval)
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(p))
    ...         pyro.sample("x", dist.Normal(4.0 * z, 1.0), obs=x)
    >>> result = fit(model, torch.tensor([-0.2, 0.1, 3.9, 4.2]), strategy=EM(), progress=False)
    >>> result.converged, round(result.params["p"].item(), 3)
    (True, 0.5)
    """
    _check(strategy, init, weights)
    callbacks = callables("callbacks", callbacks)
    space = ParamSpace(model, getattr(strategy, "guide", None), args, kwargs)
    problem = Problem(model, args, kwargs, space, lambda: _start(space, init), weights=weights)
    began = time.perf_counter()
    with isolated_rng(seed), space.active():
        loop = partial(_loop, strategy, callbacks, progress, began)
        run = run_all(problem, strategy, loop)
        rows, state = run.rows, run.state
        evaluation = strategy.evaluate(problem, state)
        status = evaluation.status or state.status
        space.save()
        params = space.values()
    return FitResult(
        params=params,
        objective=evaluation.objective,
        objective_kind=evaluation.kind,
        log_evidence=evaluation.log_evidence,
        history=pd.DataFrame([asdict(row) for row in rows], columns=list(StepInfo.__dataclass_fields__)),
        status=status,
        n_steps=run.n_steps,
        seconds=time.perf_counter() - began,
        model=model,
        _args=args,
        _kwargs=kwargs,
        _space=space,
        _inference=state.inference,
    )


def _check(strategy: Any, init: Any, weights: Any) -> None:
    if isinstance(strategy, type) or not all(hasattr(strategy, name) for name in ("init", "step", "evaluate")):
        raise TypeError(f"strategy must be a strategy object, EM(), SVI(guide) or one of your own; got {strategy!r}.")
    if init is not None and not isinstance(init, Mapping | FitResult):
        raise TypeError(
            f"init must be starting values by name, an earlier result, or None; got {type(init).__name__}. Write "
            "init={'name': value}."
        )
    if weights is not None and not getattr(strategy, "takes_weights", False):
        raise ValueError(
            f"{type(strategy).__name__} takes no weights=; put the body of the data's plate under poutine.scale, in "
            "the model and in the guide."
        )


def _start(space: ParamSpace, init: Mapping[str, Tensor] | FitResult | None) -> None:
    if isinstance(init, FitResult):
        _refuse_strange(space, init)
        space.start_from(init.params, strict=False)
    elif init is not None:
        space.start_from(init)


def _refuse_strange(space: ParamSpace, init: FitResult) -> None:
    """Refuse an earlier result that shares no name with the model: the fit would begin elsewhere without a word."""
    names = sorted(space.leaves())
    if init.params.keys() != set(names) and not init.params.keys() & set(names):
        raise StartError(
            f"init= is a result whose parameters {sorted(init.params)} are none of the model's, {names}. Give a result "
            "of this model, or a mapping from the model's names to values."
        )


def _loop(
    strategy: Strategy,
    callbacks: tuple[Callback, ...],
    progress: bool | None,
    began: float,
    problem: Problem,
    state: Any,
    most: int | None,
    record: Record,
) -> Any:
    """Step until a stopping rule or a callback speaks, recording every step; the state at the end."""
    if state.objective is not None:
        record.add(StepInfo(0, state.objective), time.perf_counter() - began)
    step = 0
    cap = min(math.inf if limit is None else limit for limit in (strategy.max_steps, most))
    with tqdm(total=strategy.max_steps, disable=progress is False, delay=0 if progress else 1, leave=False) as bar:
        while state.status is Status.RUNNING and step < cap:
            with hinting(problem.args, problem.kwargs):
                state, info = strategy.step(problem, state)
            step = info.step
            info = record.add(info, time.perf_counter() - began)
            bar.update()
            if not bar.disable:
                bar.set_postfix(objective=f"{info.objective:.6g}", refresh=False)
            if any([_is_yes(callback(info)) for callback in callbacks]):
                record.asked = True
                break
    if record.asked and state.status is Status.RUNNING:
        state = replace(state, status=Status.STOPPED)
    if state.status is Status.RUNNING:
        state = replace(state, status=Status.MAX_STEPS)
    return state


def _is_yes(answer: Any) -> bool:
    """Whether a callback says ``True``, be it Python's, numpy's or torch's; nothing else stops a fit."""
    truths = isinstance(answer, bool | np.bool_) or (isinstance(answer, Tensor) and answer.dtype is torch.bool)
    return truths and bool(answer)
