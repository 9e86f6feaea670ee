"""Posteriors of latents that have been labelled, as an E-step would leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_em.graph import Plate, Variable, align

__all__ = ["labelled"]


def labelled(
    plates: Sequence[Plate], scope: Sequence[Variable], states: Mapping[str, Tensor], chosen: Mapping[str, Tensor]
) -> Tensor:
    """All weight on the given states, none on rows that are not chosen: shape (*plates, *scope).

    Args:
        states: by variable, state numbers over its plates.
        chosen: by plate, which of its elements count; plates that are not named count whole.
    """
    total = torch.ones([p.size for p in plates], dtype=torch.float64)
    for plate in plates:
        if plate.name in chosen:
            total = total * align(chosen[plate.name].to(torch.float64), [plate], list(plates))
    for i, v in enumerate(scope):
        own = align(states[v.name], list(v.plates), list(plates)).expand([p.size for p in plates])
        hot = torch.nn.functional.one_hot(own, v.size).to(torch.float64)
        total = total.unsqueeze(-1) * hot.reshape(*own.shape, *[1] * i, v.size)
    return total
