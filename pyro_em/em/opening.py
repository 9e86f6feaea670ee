"""A model made ready for EM: checked, compiled and given an engine; where it can be, once for all starts of a fit.

What a model compiles to does not depend on the start: its routes hold at several points. So a start after the first
makes its own initial values by a run of the program, and goes on with the tensors of the first. Where these values are
others than those at which the program was checked, tensors and program are compared there too; where they differ, or
there are other sites or parameters, everything is made anew. Engines that run the program are always made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.util import set_rng_state
from torch import Tensor

from pyro_em.compiled.report import Row
from pyro_em.data import Batches, open_batches, whole
from pyro_em.em.checks import Arguments, Look, Prepared, is_small, look_at, prepare
from pyro_em.em.engine import Engine, Options, choose_engine, program_itself
from pyro_em.em.inference import ExactInference
from pyro_em.em.making import Making, make_again
from pyro_em.em.shares import Stream, open_stream
from pyro_em.em.tensors import TensorEngine
from pyro_em.em.weights import plate_weights
from pyro_em.errors import ModelError
from pyro_em.graph import Survey
from pyro_em.probing import Coordinates
from pyro_em.problem import Problem
from pyro_em.rng import aside

__all__ = ["Opened", "open_model"]


@dataclass(frozen=True)
class Opened:
    """A model ready for EM.

    Attributes:
        prepared: the checked model; of data in batches, the first.
        stream: all batches; ``None`` of data in one piece.
        options: what the strategy asks for.
        engine: at the parameters in place.
        report: who owns which parameter.
    """

    prepared: Prepared
    stream: Stream | None
    options: Options
    engine: Engine
    report: list[Row]

    @property
    def inference(self) -> ExactInference:
        """What the fitted model will answer for."""
        return self._inference(self.report)

    def itself(self) -> tuple[Engine, ExactInference]:
        """The engine that runs the program, at the parameters in place, and what a model fitted by it answers for."""
        engine, rows = program_itself(self.prepared, self.prepared.inference.space, self.options, self.stream)
        return engine, self._inference(rows)

    def _inference(self, report: list[Row]) -> ExactInference:
        weights = self.prepared.weights if self.stream is None else self.stream.weights
        return replace(self.prepared.inference, report=tuple(report), fixed=self.options.fixed, weights=weights)


@dataclass(frozen=True)
class _Known:
    """A compiled model, and the start at which it was checked.

    Attributes:
        theta: the parameters at that start.
        made: parameters that a run makes, where nothing else is part of a start.
    """

    opened: Opened
    engine: TensorEngine
    theta: Tensor
    made: frozenset[str]

    @property
    def data(self) -> tuple[Arguments, Batches | None]:
        """All data, or the first batch of them, and the batches."""
        stream = self.opened.stream
        return self.opened.prepared.data, None if stream is None else stream.batches

    def at(self, seen: Survey) -> Opened | None:
        """The same at another start, which is in place; ``None`` where it would not be the same."""
        now = Coordinates.of(self.engine.space.distinct())
        if _roles(seen) != _roles(self.opened.prepared.seen) or not _alike(now, self.engine.model.coordinates):
            return None
        engine = self.engine.anew()
        if not torch.equal(engine.theta, self.theta) and not engine.serves():
            return None
        return replace(self.opened, engine=engine)


def open_model(problem: Problem, options: Options, batch_size: int | None) -> Opened:
    """Make a model ready at its start; of the random stream, only what the initial values draw is spent.

    Raises:
        ModelError: a latent that EM cannot treat, or a model with nothing to do.
        StartError: initial values on the boundary, or ``init`` that does not fit.
    """
    known: _Known | None = problem.kept.get("compiled")
    data, batches = _data(problem, batch_size) if known is None else known.data
    if known is not None and known.made:
        make_again(problem, data, known.made)
        with aside():
            return known.at(known.opened.prepared.seen) or _anew(problem, options, batches, *_look(problem, data))
    first, made = _look(problem, data)
    with aside():
        found = None if known is None else known.at(first.seen)
        return found or _anew(problem, options, batches, first, made)


def _data(problem: Problem, batch_size: int | None) -> tuple[Arguments, Batches | None]:
    """All data, or the first batch of them, and the batches."""
    batches = open_batches(problem.args, problem.kwargs, batch_size)
    if batches is None:
        return whole(problem.args, problem.kwargs), None
    with aside():
        first = next(batches.in_order())
    return whole(first.args, first.kwargs), batches


def _look(problem: Problem, data: Arguments) -> tuple[Look, frozenset[str]]:
    """The first run, and the parameters that it makes, where nothing else is part of a start."""
    with Making() as making:
        first = look_at(problem, data)
    if not making.names or not _is_plain(first):
        return first, frozenset()
    set_rng_state(making.state)
    return first, frozenset(making.names)


def _is_plain(first: Look) -> bool:
    """Whether the start of a fit is the parameters that one run on all data makes."""
    return is_small(first.data) and not first.seen.others and not first.seen.subsampled


def _anew(problem: Problem, options: Options, batches: Batches | None, first: Look, made: frozenset[str]) -> Opened:
    prepared = prepare(problem if batches is None else replace(problem, weights=None), first)
    stream = None if batches is None else _stream(problem, batches, prepared)
    engine, report = choose_engine(prepared, problem.space, options, stream)
    opened = Opened(prepared, stream, options, engine, report)
    if isinstance(engine, TensorEngine):
        problem.kept["compiled"] = _Known(opened, engine, engine.theta, made)
    return opened


def _stream(problem: Problem, batches: Batches, prepared: Prepared) -> Stream:
    if prepared.stochastic:
        raise ModelError("A plate that draws a subsample cannot be cut into batches too; remove subsample_size.")
    stream = open_stream(batches, prepared, {})
    if problem.weights is None:
        return stream
    sizes = {p.name: p.size for f in prepared.graph.factors for p in f.plates}
    sizes = {**sizes, **dict.fromkeys(stream.plates & sizes.keys(), batches.total)}
    return replace(stream, weights=plate_weights(problem.weights, prepared.seen, sizes))


def _roles(seen: Survey) -> tuple[Any, ...]:
    """What a run shows of the sites, but for their values."""
    sites = tuple((name, site["type"]) for name, site in seen.trace.nodes.items())
    return sites, seen.max_plate_nesting, seen.enumerated, seen.others, seen.imputed, seen.data_plates


def _alike(one: Any, other: Any) -> bool:
    """Whether two objects are equal in all they hold; constraints do not say so themselves."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other) or (bool(getattr(one, "__dict__", None)) and _alike(vars(one), vars(other)))
