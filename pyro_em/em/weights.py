"""Which plate the caller's weights belong to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_em.graph import Survey

__all__ = ["plate_weights"]


def plate_weights(
    given: Mapping[str, Tensor] | Tensor | None, seen: Survey, sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Weights by plate, float64.

    Args:
        given: by plate, or for the outermost data plate.
        seen: the sites of the model.
        sizes: of the data plates, on all data.

    Raises:
        ValueError: an unknown plate, a wrong length, a negative or non-finite weight, or several outermost plates.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        given = {_outermost(seen, torch.as_tensor(given), sizes): given}
    found = {}
    for name, weight in given.items():
        weight = torch.as_tensor(weight).detach().to(torch.float64)
        if name not in sizes:
            raise ValueError(f"weights names plate {name!r}; the data plates are {sorted(sizes)}.")
        if tuple(weight.shape) != (sizes[name],):
            raise ValueError(f"Plate {name!r} has {sizes[name]} elements; weights has shape {tuple(weight.shape)}.")
        if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
            raise ValueError("weights must be finite and not negative: they say how often each datum counts.")
        found[name] = weight
    return found


def _outermost(seen: Survey, weight: Tensor, sizes: Mapping[str, int]) -> str:
    """The one data plate, outside all others, that the weights fit."""
    outer = {
        next(f.name for f in site["cond_indep_stack"] if f.vectorized and f.name in seen.data_plates)
        for site in seen.trace.nodes.values()
        if site["type"] == "sample"
        and any(f.vectorized and f.name in seen.data_plates for f in site["cond_indep_stack"])
    }
    fitting = [name for name in sorted(outer) if weight.dim() == 1 and sizes.get(name) == len(weight)]
    if len(fitting) == 1:
        return fitting[0]
    shapes = {name: sizes.get(name) for name in sorted(outer)}
    raise ValueError(
        f"weights has shape {tuple(weight.shape)}; the outermost data plates have sizes {shapes}. Give one weight for "
        "each element, or a mapping from the name of the plate."
    )
