"""Latents on which the data say nothing, and why the M-step must not hear them.

A latent without an observed descendant sums to one whatever the parameters are: padding of a ragged chain, rows under a
mask. In Q it would still count, with the old parameters' own prediction as its posterior, and so pull the new
parameters towards the old. Leaving it out is exact - the remaining model has the same evidence - and is what a
hand-written EM does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_em.graph.eliminate import align
from pyro_em.graph.factor import Factor, FactorGraph, Plate, Variable

__all__ = ["informed_weights"]


def informed_weights(graph: FactorGraph, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Clique posteriors with those of uninformed latents set to zero, element by element of their plates."""
    return tuple(
        w if k is None or w.dim() == 0 else w * k.reshape(*k.shape, *[1] * len(f.scope))
        for f, w, k in zip(graph.factors, weights, _informed(graph), strict=True)
    )


def _informed(graph: FactorGraph) -> list[Tensor | None]:
    """For each factor, over its plates: whether any datum depends on it (``None``: all of it).

    Sites come in the model's order, parents first, so one sweep from the last to the first settles every latent.
    """
    heard = {v: torch.zeros([p.size for p in v.plates], dtype=torch.bool) for v in graph.variables.values()}
    found: list[Tensor | None] = []
    for factor in reversed(graph.factors):
        own = graph.variables.get(factor.name)
        active = heard[own] if own is not None else factor.active
        for variable in factor.scope:
            if variable != own:
                heard[variable] = heard[variable] | _reaches(factor, active, variable)
        found.append(active)
    return found[::-1]


def _reaches(factor: Factor, active: Tensor | None, variable: Variable) -> Tensor:
    """Over the variable's plates: whether some active element of the factor depends on it."""
    if active is None:
        return torch.ones([p.size for p in variable.plates], dtype=torch.bool)
    kept: list[Plate] = [p for p in factor.plates if p in variable.plates]
    others = [i for i, p in enumerate(factor.plates) if p not in variable.plates]
    seen = active.movedim(others, list(range(-len(others), 0))).flatten(len(kept)).any(-1) if others else active
    return align(seen, kept, variable.plates)
