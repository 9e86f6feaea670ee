"""Recognising parameters in an argument by their values.

Parameters hold distinct values, so an argument's entry that equals one of them came from it - if it does so again after
every parameter has been given another value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_em.families import Argument
from pyro_em.probing.coordinates import Coordinates
from pyro_em.probing.links import candidates
from pyro_em.probing.routes import Selected, linked

__all__ = ["collapse", "match"]

NEAR = 4  # neighbours in value that are tried; more cannot lie within the tolerance of a grid


def match(
    argument: Argument, draws: Sequence[Tensor], thetas: Sequence[Tensor], coordinates: Coordinates, exact: bool
) -> Selected | None:
    """The index map and link that explain an argument in all draws, or ``None``.

    Args:
        argument: which argument it is.
        draws: its value at each theta, shape (*dims, *events, *block), float64.
        thetas: the parameters, one vector for each draw.
        coordinates: what theta's elements are.
        exact: whether values were computed in float64 (float32 has less to tell them apart by).
    """
    first = draws[0]
    constant = torch.stack([first == other for other in draws[1:]]).all(0)
    constants, which = torch.unique(first[constant], return_inverse=True)
    index = torch.full(first.shape, -1, dtype=torch.long)
    index[constant] = -1 - which
    if bool(constant.all()):
        return Selected(collapse(index, argument.rank), constants)
    wanted = [d[~constant] for d in draws]
    for link in candidates(argument.rank):
        sources = [linked(coordinates, theta, link.name) for theta in thetas]
        found = _lookup(wanted, sources, 1e-9 if exact else 3e-6)
        if bool((found >= 0).all()):
            index[~constant] = found
            complete = link.rank == argument.rank or link.rank == 0
            if complete and _blocks_are_whole(argument, index, coordinates):
                return Selected(collapse(index, argument.rank), constants, link.name)
    return None


def collapse(index: Tensor, rank: int) -> Tensor:
    """Size one along axes, but for the last ``rank``, over which nothing changes."""
    for axis in range(index.dim() - rank):
        if index.shape[axis] > 1 and bool((index == index.narrow(axis, 0, 1)).all()):
            index = index.narrow(axis, 0, 1)
    return index


def _lookup(wanted: Sequence[Tensor], sources: Sequence[Tensor], tolerance: float) -> Tensor:
    """For each entry, the element that equals it in all draws; -1 where there is none."""
    usable = sources[0].isfinite().nonzero().squeeze(-1)
    found = torch.full(wanted[0].shape, -1, dtype=torch.long)
    if not len(usable):
        return found
    order = usable[sources[0][usable].argsort(stable=True)]
    levels = sources[0][order]
    at = torch.searchsorted(levels, wanted[0] - tolerance * (wanted[0].abs() + 1e-3))
    for step in range(NEAR):
        candidate = order[(at + step).clamp_max(len(order) - 1)]
        agrees = torch.ones_like(found, dtype=torch.bool)
        for values, source in zip(wanted, sources, strict=True):
            agrees &= torch.isclose(source[candidate], values, rtol=tolerance, atol=1e-3 * tolerance)
        found = torch.where((found < 0) & agrees, candidate, found)
        if bool((found >= 0).all()):
            break
    return found


def _blocks_are_whole(argument: Argument, index: Tensor, coordinates: Coordinates) -> bool:
    """Whether a vector or matrix argument takes complete rows or matrices of parameters.

    A row on the simplex must be one row of a parameter, in any order; a matrix one matrix, in its order; any other
    vector must not repeat an element.
    """
    if argument.rank == 0:
        return True
    blocks = torch.unique(index.flatten(0, -1 - argument.rank) if index.dim() > argument.rank else index[None], dim=0)
    if argument.rank == 1:
        return all(_row_is_whole(argument, row, coordinates) for row in blocks)
    return all(_matrix_is_whole(block, coordinates) for block in blocks)


def _row_is_whole(argument: Argument, row: Tensor, coordinates: Coordinates) -> bool:
    if bool((row < 0).all()):
        return True
    if bool((row < 0).any()) or len(row.unique()) < len(row):
        return False
    if argument.domain is not torch.distributions.constraints.simplex:
        return True
    return _is_block(row.sort().values, coordinates, 1)


def _matrix_is_whole(block: Tensor, coordinates: Coordinates) -> bool:
    if bool((block < 0).all()):
        return True
    size = block.shape[-1]
    natural = block[0, 0] + torch.arange(size * size).reshape(size, size)
    lower = torch.ones(size, size).tril().bool()
    return bool((block[lower] == natural[lower]).all()) and _is_block(natural.reshape(-1), coordinates, 2)


def _is_block(elements: Tensor, coordinates: Coordinates, rank: int) -> bool:
    """Whether consecutive elements of theta are one trailing block of one parameter."""
    count, at = len(elements), int(elements[0])
    if int(elements[-1]) != at + count - 1:
        return False
    for name, start in coordinates.starts().items():
        shape = coordinates.shapes[name]
        size = torch.Size(shape).numel()
        if start <= at < start + size:
            block = torch.Size(shape[len(shape) - rank :]).numel() if len(shape) >= rank else 0
            return block == count and (at - start) % count == 0
    return False
