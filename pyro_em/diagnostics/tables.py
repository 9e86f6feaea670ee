"""The best bound of a guide over finite latents, each of its sites a table of its own for every datum."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyro_em.diagnostics.bound import FiniteGuide, exact_bound
from pyro_em.graph import FactorGraph, clique_posteriors
from pyro_em.graph.core import core_of

__all__ = ["best_table_bound"]

ANY_TABLE = (torch.distributions.Categorical, torch.distributions.Bernoulli, torch.distributions.OneHotCategorical)
LEAST = -36.0  # log-probability that a state starts from where the guide excludes it
LOWEST = -300.0
SWEEPS = 1000
SETTLED = 1e-9  # nats, relative to the bound


def best_table_bound(pair: FiniteGuide) -> float | str:
    """The greatest bound of a guide over finite latents that keeps their dependences, or why it is unknown.

    Each site of the guide becomes a table q(z_n | parents) of its own for every datum, and takes in turn what is best
    given the others. For a single latent per datum that is the exact posterior at once, and the bound the log evidence.
    Of several that the guide has apart, it is a local maximum, the one uphill from the guide.
    """
    q = pair.guide
    other = [n for n in q.variables if not isinstance(core_of(q.layout[n].fn).fn, ANY_TABLE)]
    if other:
        return f"the distributions of {other} in the guide are not tables over their states"
    start = float(exact_bound(pair))
    open_everywhere = [t.detach().clamp_min(LEAST) for t in q.tables]
    for tables in (open_everywhere, q.tables):  # what the model makes impossible stays so
        best = _climb(replace(pair, guide=_normalised(q, tables)))
        if math.isfinite(best):
            return max(best, start)
    return start


def _climb(pair: FiniteGuide) -> float:
    bound = float(exact_bound(pair))
    for _ in range(SWEEPS):
        before = bound
        for i in range(len(pair.guide.factors)):
            pair = replace(pair, guide=_improved(pair, i))
        bound = float(exact_bound(pair))
        if not bound > before + SETTLED * (1 + abs(bound)):
            break
    return bound


def _improved(pair: FiniteGuide, site: int) -> FactorGraph:
    """The guide with one table at its best given the others.

    The bound's slope in a table of log-probabilities is m (A - log q) up to a constant, with m the joint of the site
    and its parents and A what log q is best equal to. So A is the table plus slope over m.
    """
    q = pair.guide
    tables = [t.detach().clone().requires_grad_(i == site) for i, t in enumerate(q.tables)]
    table = tables[site]
    with torch.enable_grad():
        slope = torch.autograd.grad(exact_bound(replace(pair, guide=q.with_tables(tables))), table)[0]
    counted = clique_posteriors(q).weights[site]  # times weights and scale, as the slope is
    usable = (counted > 0) & torch.isfinite(slope)
    step = torch.where(usable, slope / torch.where(usable, counted, 1.0), 0.0)
    tables[site] = torch.where(table > -torch.inf, (table + step).clamp_min(LOWEST), -torch.inf).detach()
    return _normalised(q, tables)


def _normalised(q: FactorGraph, tables: list[Tensor]) -> FactorGraph:
    axes = [len(f.plates) + f.scope.index(q.variables[f.name]) for f in q.factors]
    return q.with_tables([t.detach().log_softmax(axis) for t, axis in zip(tables, axes, strict=True)])
