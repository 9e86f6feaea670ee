"""The bound L = E_q[log p(x, z) - log q(z)] of a guide: exact where its latents are finite, else by draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph import Factor, FactorGraph, Intervention, Program, build_graph, log_evidence, survey, weighted
from pyro_em.graph.trace import draw_guide, is_latent
from pyro_em.strategy import Inference

__all__ = ["FiniteGuide", "exact_bound", "finite_guide", "log_ratio"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def log_ratio(
    inference: Inference, guide: Callable[..., Any], data: Arguments, scored: Mapping[str, Any] | None = None
) -> Tensor:
    """log p(x, z) - log q(z) at one draw of the guide, finite latents it leaves out summed out; total nats.

    Differentiable along reparameterised draws.

    Args:
        scored: distributions by site that take the place of the guide's own in log q.
    """
    drawn, intervention = draw_guide(guide, *data, {})
    graph = inference.graph(*data, intervention)
    intervention.refuse_partial()
    for name, fn in (scored or {}).items():
        drawn.nodes[name]["fn"] = fn
    found = build_graph(drawn, frozenset(), frozenset())
    log_q = [weighted(found, f.table, f.dims, f.plates).sum() * f.scale for f in found.factors]
    log_q = [q for q, f in zip(log_q, found.factors, strict=True) if is_latent(drawn.nodes[f.name])]
    return log_evidence(graph) - torch.stack([torch.zeros((), dtype=torch.float64), *log_q]).sum()


@dataclass(frozen=True)
class FiniteGuide:
    """A model and a guide over the same finite latents, as tables."""

    model: FactorGraph
    guide: FactorGraph


def finite_guide(inference: Inference, guide: Callable[..., Any], data: Arguments) -> FiniteGuide | None:
    """Both as factor graphs; ``None`` where a latent is not finite, or the guide does not enumerate."""
    look = Intervention()
    try:
        seen = survey(guide, *data, look)
        if seen.others or not seen.enumerated:
            return None
        program = Program(guide, seen.max_plate_nesting)
        with torch.no_grad():
            q = program.graph(*data, Intervention())
            p: FactorGraph = inference.graph(*data, Intervention())
        program.verify(q, *data, Intervention())
    except ModelError:
        return None
    look.refuse_partial()
    return FiniteGuide(p, q) if p.variables == q.variables else None


def exact_bound(pair: FiniteGuide) -> Tensor:
    """L with every sum written out, total nats; differentiable twice in the guide's tables where these want it.

    E_q of a factor of the model needs q's joint over the factor's scope, which is the gradient of the guide's log Z
    with respect to a table of zeros there.
    """
    p, q = pair.model, pair.guide
    wanted = any(t.requires_grad for t in q.tables)
    tables = [t if t.requires_grad else t.detach().requires_grad_(True) for t in q.tables]
    plain = replace(q.with_tables(tables), weights={})
    plain = replace(plain, factors=tuple(replace(f, scale=1.0) for f in plain.factors))
    terms = [_over_scope(p, f) for f in p.factors]
    probes = [
        replace(t, name=f"probe of {t.name}", table=torch.zeros_like(t.table).requires_grad_(True))
        for t in terms
        if t.scope
    ]
    with torch.enable_grad():
        evidence = log_evidence(plain.with_factors(*probes), twice=wanted)
        found = torch.autograd.grad(evidence, [*tables, *(f.table for f in probes)], create_graph=wanted)
    own, rest = found[: len(tables)], iter(found[len(tables) :])
    energy = [_expected(next(rest), t.table) if t.scope else t.table.sum() for t in terms]
    log_q = [weighted(q, t, f.dims, f.plates) * f.scale for t, f in zip(tables, q.factors, strict=True)]
    entropy = [-_expected(m, t) for m, t in zip(own, log_q, strict=True)]
    total = torch.stack([*energy, *entropy]).sum()
    return total if wanted else total.detach()


def _over_scope(graph: FactorGraph, factor: Factor) -> Factor:
    """A factor times what multiplies it, summed over the plates that none of its variables lies in."""
    table = weighted(graph, factor.table, factor.dims, factor.plates) * factor.scale
    own = {p for v in factor.scope for p in v.plates}
    others = [i for i, p in enumerate(factor.plates) if p not in own]
    plates = tuple(p for p in factor.plates if p in own)
    return replace(factor, plates=plates, table=table.sum(others) if others else table, scale=1.0, active=None)


def _expected(probs: Tensor, table: Tensor) -> Tensor:
    """E[table], where what is impossible counts as nothing."""
    possible = probs > 0
    return (torch.where(possible, probs, 0.0) * torch.where(possible, table, 0.0)).sum()
