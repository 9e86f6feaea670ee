"""Which axis of a log-probability is which plate or variable."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.factor import Plate, Variable

__all__ = ["arrange", "axes_of", "unknown_axis"]


def axes_of(
    name: str, shape: torch.Size, plates: Mapping[int, Plate], dims: Mapping[int, Variable]
) -> dict[int, Plate | Variable]:
    """What each axis of more than one entry stands for, by its position from the left."""
    axes: dict[int, Plate | Variable] = {}
    for position, size in enumerate(shape):
        dim = position - len(shape)
        if size == 1:
            continue
        known = plates.get(dim) or dims.get(dim)
        if known is None or known.size != size:
            raise ModelError(unknown_axis(name, shape, dim, plates))
        axes[position] = known
    return axes


def unknown_axis(name: str, shape: torch.Size, dim: int, plates: Mapping[int, Plate]) -> str:
    """The message for a batch dimension that no plate declares."""
    declared = {d: p.name for d, p in plates.items()}
    return (
        f"Site {name!r} has a log-probability of shape {tuple(shape)} whose dimension {dim} is not declared "
        f"independent: its plates are {declared or 'none'}. Put the site inside `pyro.plate(...)`, or call "
        "`.to_event(n)` on its distribution."
    )


def arrange(table: Tensor, axes: Mapping[int, Plate | Variable], target: tuple[Plate | Variable, ...]) -> Tensor:
    """The table over ``target``, repeated (without copying) along the plates it does not vary over."""
    kept = list(axes.items())
    table = table.reshape([d.size for _, d in kept])
    order = [i for t in target for i, (_, d) in enumerate(kept) if d == t]
    table = table.permute(order)
    present = {kept[i][1] for i in order}
    table = table.reshape([d.size if d in present else 1 for d in target])
    return table.expand([d.size for d in target])
