"""Data that no state explains: log p(x) is -inf, and p(z | x) is 0 / 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.factor import Plate

__all__ = ["refuse_impossible"]


def refuse_impossible(name: str, log_prob: Tensor, plates: Sequence[Plate]) -> None:
    """Refuse to choose states of a latent where none is possible: no value of its type could stand for that.

    Args:
        name: the latent.
        log_prob: over its plates, -inf where the data are impossible.

    Raises:
        ModelError: somewhere they are; it says how many elements and the first of them.
    """
    places = (log_prob == -torch.inf).nonzero()
    if not len(places):
        return
    what = "The data are impossible under the model (log p = -inf), which leaves"
    marginal = f"posterior[{name!r}] is NaN"
    if plates:
        index = ", ".join(map(str, places[0].tolist()))
        where = " x ".join(repr(p.name) for p in plates)
        verb = "is" if len(places) == 1 else "are"
        what = (
            f"{len(places)} of {log_prob.numel()} elements of plate {where} {verb} impossible under the model "
            f"(log p = -inf), the first at index {index}; that leaves"
        )
        marginal += " there, and exact elsewhere"
    raise ModelError(f"{what} {name!r} no most probable value and no draws. Ask without these data; {marginal}.")
