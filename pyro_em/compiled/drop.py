"""Going on without a component that collapsed: its state gets no probability, its parameters stay as they were."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pyro_em.compiled.factor import TensorFactor
from pyro_em.compiled.maximise import Maximiser, Moved
from pyro_em.compiled.model import Expectation, TensorModel
from pyro_em.compiled.point import Point
from pyro_em.errors import DegenerateError
from pyro_em.families.categorical import Categorical

__all__ = ["Element", "maximised", "without_component"]

Element = tuple[str, tuple[int, ...]]  # a parameter, and which of its elements


def maximised(
    maximiser: Maximiser,
    model: TensorModel,
    theta: Tensor,
    found: Expectation,
    free: Collection[str],
    drops: bool,
    point: Point | None = None,
) -> tuple[Moved, frozenset[Element]]:
    """The M-step, without components that collapse in it; and the elements of parameters that did.

    Args:
        free: names of parameters that may move.
        drops: whether to go on without them.
        point: what the books make of theta, where that is known.

    Raises:
        DegenerateError: a component collapsed, and may not or cannot be dropped.
    """
    stats, dropped = found.stats, frozenset[Element]()
    while True:
        try:
            return maximiser.maximise(theta, stats, found.pieces, point), dropped
        except DegenerateError as error:
            if not drops:
                raise
            stats, dropped = without_component(model, stats, error, free), dropped | {(error.param, error.element)}


def without_component(
    model: TensorModel, stats: tuple[Tensor, ...], error: DegenerateError, free: Collection[str]
) -> tuple[Tensor, ...]:
    """Statistics in which no datum belongs to the component.

    Args:
        free: names of parameters that may move.

    Raises:
        DegenerateError: the parameter is shared by all states, or the probability of its state cannot move.
    """
    start, shape = model.coordinates.starts()[error.param], model.coordinates.shapes[error.param]
    flat = 0
    for size, i in zip(shape, error.element, strict=True):
        flat = flat * size + i
    found, states = _silenced(model, stats, start + flat)
    gone = {f.scope[-1].name: served for f, served in states.items()}
    drawn = [f for f in model.factors if isinstance(f, TensorFactor) and f.own is not None and f.own.name in gone]
    if not drawn or len(drawn) < len(gone):
        raise error
    for own in drawn:
        if not isinstance(own.book.family, Categorical) or not own.book.names or not own.book.names <= set(free):
            raise error
        at = next(i for i, b in enumerate(model.books) if b is own.book)
        cells = own.cell.reshape(-1).unique()
        before = found[at][cells, :-1].sum(-1)
        for k in gone[own.own.name if own.own else ""]:
            found[at][cells, k] = 0.0
        if bool(((before > 0) & (found[at][cells, :-1].sum(-1) <= 0)).any()):
            raise error  # no component is left
    return tuple(found)


def _silenced(
    model: TensorModel, stats: tuple[Tensor, ...], element: int
) -> tuple[list[Tensor], dict[TensorFactor, list[int]]]:
    """Statistics without the cells that stand on an element of theta, and by factor the states those serve."""
    found, states = [s.clone() for s in stats], dict[TensorFactor, list[int]]()
    for i, book in enumerate(model.books):
        bad = torch.zeros(book.size, dtype=torch.bool)
        for argument, rows in book.rows.items():
            hit = (rows.reshape(len(rows), -1) == element).any(1)
            bad |= hit[book.groups[argument]]
        for f in model.factors:
            if not isinstance(f, TensorFactor) or f.book is not book or not bool(bad.any()):
                continue
            served = bad[f.cell].any(2).any(0)
            if bool(served.all()) or len(f.scope) != 1:
                continue
            states[f] = served.nonzero().squeeze(-1).tolist()
            found[i][f.cell[:, served].reshape(-1)] = 0.0
    return found, states
