"""Posteriors of latents that have been labelled, as an E-step would leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from pyro_em.compiled.point import AnyFactor
from pyro_em.graph import Plate, Variable, align

__all__ = ["by_rows", "drawn", "labelled", "members"]


def labelled(
    plates: Sequence[Plate],
    scope: Sequence[Variable],
    states: Mapping[str, Tensor],
    chosen: Mapping[str, Tensor],
    rest: float = 0.0,
) -> Tensor:
    """All weight on the given states, none on rows that are not chosen: shape (*plates, *scope).

    Args:
        states: by variable, state numbers over its plates; what depends on a variable that is not named does not count.
        chosen: by plate, which of its elements count; plates that are not named count whole.
        rest: weight of what does not count, spread evenly over the states.
    """
    sizes = [v.size for v in scope]
    counted = torch.ones([p.size for p in plates], dtype=torch.float64)
    for plate in plates:
        if plate.name in chosen:
            counted = counted * align(chosen[plate.name].to(torch.float64), [plate], list(plates))
    total = counted
    for i, v in enumerate(scope):
        if v.name not in states:
            return torch.full([*(p.size for p in plates), *sizes], rest / prod(sizes), dtype=torch.float64)
        own = align(states[v.name], list(v.plates), list(plates)).expand([p.size for p in plates])
        hot = torch.nn.functional.one_hot(own, v.size).to(torch.float64)
        total = total.unsqueeze(-1) * hot.reshape(*own.shape, *[1] * i, v.size)
    if not rest:
        return total
    return total + (rest / prod(sizes)) * (1 - counted).reshape([*counted.shape, *[1] * len(sizes)])


def members(factor: AnyFactor) -> tuple[str, ...]:
    """The sites that a factor stands for."""
    return (factor.name,) if factor.stack is None else factor.stack.members


def drawn(factor: AnyFactor) -> tuple[Variable, ...]:
    """The model's variables behind a factor's scope; of a stack over one variable a time, in order of time."""
    if factor.stack is None:
        return factor.scope
    frames = factor.stack.frames
    seats = [(row, position, at) for at in factor.stack.at.tolist() for row, position in factor.stack.axes]
    return tuple(frames.hubs[i] if row == 0 else frames.frames[at - (row - 1)][i] for row, i, at in seats)


def by_rows(factor: AnyFactor, states: Mapping[str, Tensor], chosen: Mapping[str, Tensor], rest: float = 0.0) -> Tensor:
    """The same for a factor: shape (rows, K)."""
    if factor.stack is None:
        return labelled(factor.plates, factor.scope, states, chosen, rest).reshape(factor.num_rows, factor.num_states)
    stack, scope = factor.stack, drawn(factor)
    plates, width = stack.frames.plates, len(stack.axes)
    parts = [labelled(plates, scope[i : i + width], states, chosen, rest) for i in range(0, len(scope), width)]
    whole = torch.stack(parts, len(plates))
    gone = [i for i, p in enumerate((*plates, stack.time)) if p not in factor.plates]
    return (whole.sum(gone) if gone else whole).reshape(factor.num_rows, factor.num_states)
