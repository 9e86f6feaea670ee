"""From an enumerated trace to a factor graph: which axis of which log-probability is which variable or plate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.alike import FEW, kind_of, stacked
from pyro_em.graph.axes import arrange, axes_of
from pyro_em.graph.density import log_prob, without_missing
from pyro_em.graph.factor import Factor, FactorGraph, HiddenSite, Layout, Plate, Prior, Variable
from pyro_em.graph.hidden import hidden_of, is_hidden, unmasked
from pyro_em.graph.impossible import with_true_zeros
from pyro_em.graph.trace import Site, is_random

__all__ = [
    "Structure",
    "active_part",
    "broadcast",
    "build_factors",
    "build_graph",
    "graph_of",
    "plates_of",
    "site_log_prob",
    "site_scale",
    "structure",
]


def build_graph(trace: poutine.Trace, priors: frozenset[str], ignored: frozenset[str]) -> FactorGraph:
    """The factor graph of an enumerated trace.

    Args:
        trace: from :func:`~pyro_em.graph.enumerated.run_enumerated`.
        priors: names of latents whose log-density is reported apart (point estimates).
        ignored: sites left out (imputed values that nothing depends on; latents the guide accounts for).

    Raises:
        ModelError: a log-probability has an axis that is neither a plate nor an enumerated latent, or a tensor scale.
    """
    return graph_of(structure(trace, ignored), priors)


def graph_of(found: Structure, priors: frozenset[str]) -> FactorGraph:
    """The factor graph of a structure."""
    sites = {n: s for n, s in found.sites.items() if n not in priors}
    factors = {f.name: f for names in _alike(sites, found) for f in _factors(names, found)}
    weights = datum_weights(sites)
    known = {n: _prior(n, found.sites[n]) for n in priors}
    ordered = tuple(factors[n] for n in sites)
    return FactorGraph(ordered, known, found.variables, found.layout, weights, _hidden(found))


def _hidden(found: Structure) -> dict[str, HiddenSite]:
    """Sites with a chain behind them whose batch is that of their plates."""
    chains = {}
    for name, site in found.sites.items():
        if site["is_observed"] and is_hidden(site["fn"]):
            shape = broadcast(site["fn"].batch_shape, site["value"].shape[: -site["fn"].event_dim])
            plates = tuple(plates_of(site, shape).values())
            if prod(p.size for p in plates) == prod(shape):
                chains[name] = HiddenSite(plates, partial(hidden_of, site["fn"], without_missing(site)))
    return chains


def build_factors(trace: poutine.Trace, names: Iterable[str], ignored: frozenset[str]) -> tuple[Factor, ...]:
    """The factors of some sites of a trace, in the order of the names.

    Raises:
        ModelError: as :func:`build_graph`.
    """
    found = structure(trace, ignored)
    return tuple(_factor(n, found.sites[n], found) for n in names)


@dataclass(frozen=True)
class Structure:
    """What an enumerated trace says before any density is evaluated.

    Attributes:
        sites: trace nodes that have a density, in the model's order.
        by_id: Pyro's identity of an enumeration dimension, to the variable it stands for.
        variables, layout: as in :class:`FactorGraph`.
    """

    sites: dict[str, Site]
    by_id: dict[int, Variable]
    variables: dict[str, Variable]
    layout: dict[str, Layout]


def structure(trace: poutine.Trace, ignored: frozenset[str]) -> Structure:
    """The sites and variables of an enumerated trace."""
    sites = {n: s for n, s in trace.nodes.items() if is_random(s) and n not in ignored}
    by_id: dict[int, Variable] = {}
    layout: dict[str, Layout] = {}
    for name, site in sites.items():
        if site["infer"].get("_enumerate_dim") is not None:
            variable, look = _variable(name, site)
            by_id[site["infer"]["_dim_to_id"][site["infer"]["_enumerate_dim"]]] = variable
            layout[name] = look
    return Structure(sites, by_id, {v.name: v for v in by_id.values()}, layout)


def plates_of(site: Site, shape: torch.Size) -> dict[int, Plate]:
    """The vectorised plates a site lies in, outermost first, by negative batch dimension."""
    plates = {}
    for frame in site["cond_indep_stack"]:
        if frame.vectorized:
            size = int(frame.size)
            if size <= 0:  # pyro.plate(name) without a size takes that of its sites
                size = shape[frame.dim] if -frame.dim <= len(shape) else 1
            plates[frame.dim] = Plate(frame.name, size)
    return plates


def broadcast(one: torch.Size, other: torch.Size) -> torch.Size:
    """The common shape of two that are known to go together; ``torch.broadcast_shapes`` takes fifty times as long."""
    if one == other or not other:
        return one
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    start = len(longer) - len(shorter)
    return torch.Size([*longer[:start], *(b if a == 1 else a for a, b in zip(longer[start:], shorter, strict=True))])


def site_log_prob(site: Site) -> Tensor:
    """The site's log-density before any scale; a latent keeps its own under a mask, so that it still sums to one."""
    if site["is_observed"] or not site["infer"].get("_is_summed"):
        return scale_and_mask(log_prob(site), mask=site["mask"])
    fn, _ = unmasked(site["fn"])  # Pyro would count a masked latent as one of uniform weights 1
    return with_true_zeros(fn).log_prob(site["value"])


def _variable(name: str, site: Site) -> tuple[Variable, Layout]:
    dim, fn = site["infer"]["_enumerate_dim"], site["fn"]
    value = site["value"]
    axis = value.dim() - fn.event_dim + dim
    if axis < 0:  # Pyro squeezes the axis of a latent with one state
        value, axis = value.reshape((1,) * -axis + tuple(value.shape)), 0
    plates = plates_of(site, fn.batch_shape)
    variable = Variable(name, value.shape[axis], tuple(plates.values()))
    return variable, Layout(value.detach(), axis, tuple(plates), fn)


def _prior(name: str, site: Site) -> Prior:
    density = site_log_prob(site)
    total = density.to(torch.float64).sum() * site_scale(name, site)
    return Prior(total, plates_of(site, density.shape), site["fn"].event_dim)


def _alike(sites: Mapping[str, Site], found: Structure) -> list[list[str]]:
    """Sites by what they have in common; each on its own where there are few."""
    if len(sites) <= FEW:
        return [[name] for name in sites]
    groups: dict[object, list[str]] = {}
    for name, site in sites.items():
        kind: object = kind_of(site)
        if kind is not None:
            frames = tuple((f.name, f.dim, f.size) for f in site["cond_indep_stack"] if f.vectorized)
            dims = tuple((d, v.size) for d, v in variable_dims(site, found).items())
            kind = kind, frames, dims, name in found.variables
        groups.setdefault(name if kind is None else kind, []).append(name)
    return list(groups.values())


def _factors(names: Sequence[str], found: Structure) -> list[Factor]:
    """The factors of alike sites."""
    sites = [found.sites[n] for n in names]
    one = stacked(sites) if len(names) > FEW else None
    if one is None:
        return [_factor(n, s, found) for n, s in zip(names, sites, strict=True)]
    table = site_log_prob(one)
    for i in (0, -1):  # were a distribution not what it holds, stack by stack, this would show
        if not _is_near(table[i], site_log_prob(sites[i])):
            return [_factor(n, s, found) for n, s in zip(names, sites, strict=True)]
    plates = plates_of(sites[0], table.shape[1:])
    axes = axes_of(names[0], table.shape[1:], plates, variable_dims(sites[0], found))
    places = [i - table.dim() + 1 for i, d in axes.items() if isinstance(d, Variable)]
    scopes = [_scope(n, s, places, found) for n, s in zip(names, sites, strict=True)]
    group = Plate("", len(names))
    moved: dict[int, Plate | Variable] = {0: group, **{i + 1: d for i, d in axes.items()}}
    tables = arrange(table, moved, (group, *plates.values(), *scopes[0])).to(torch.float64).unbind()
    inside = tuple(plates.values())
    parts = zip(names, scopes, tables, sites, strict=True)
    return [Factor(n, inside, scope, t, site_scale(n, s)) for n, scope, t, s in parts]


def _scope(name: str, site: Site, places: Sequence[int], found: Structure) -> tuple[Variable, ...]:
    """The variables of a site at these negative batch dimensions, and its own."""
    dims, own = variable_dims(site, found), found.variables.get(name)
    scope = tuple(dict.fromkeys(dims[d] for d in places))
    return scope if own is None or own in scope else (*scope, own)


def _is_near(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    if one.shape != other.shape or one.dtype != other.dtype:  # a stack of numbers may be promoted, a number is not
        return False
    tolerance = 64 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _factor(name: str, site: Site, found: Structure) -> Factor:
    table, own = site_log_prob(site), found.variables.get(name)
    plates = plates_of(site, table.shape)
    axes = axes_of(name, table.shape, plates, variable_dims(site, found))
    scope = tuple(dict.fromkeys(v for v in axes.values() if isinstance(v, Variable)))
    if own is not None and own not in scope:
        scope += (own,)
    table = arrange(table, axes, (*plates.values(), *scope)).to(torch.float64)
    return Factor(name, tuple(plates.values()), scope, table, site_scale(name, site), active_part(site, plates))


def variable_dims(site: Site, found: Structure) -> dict[int, Variable]:
    """The enumeration dimensions a site may have, by negative batch dimension."""
    return {dim: found.by_id[i] for dim, i in site["infer"].get("_dim_to_id", {}).items() if i in found.by_id}


def active_part(site: Site, plates: Mapping[int, Plate]) -> Tensor | None:
    """Over the site's plates: where an observation counts; ``None``, everywhere."""
    mask = site["mask"]
    if not site["is_observed"] or mask is None or mask is True:
        return None
    mask = torch.as_tensor(mask)
    sized = [(i, i - mask.dim()) for i, size in enumerate(mask.shape) if size > 1]
    if any(dim not in plates for _, dim in sized):
        return None  # it varies over a latent's states: every datum counts in some of them
    return arrange(mask, {i: plates[dim] for i, dim in sized}, tuple(plates.values()))


def site_scale(name: str, site: Site) -> float:
    """The site's scalar ``poutine.scale``; one, where it has a scale for each datum (see :func:`datum_weights`)."""
    scale = site["scale"]
    if isinstance(scale, Tensor):
        return float(scale) if scale.numel() == 1 else 1.0
    return float(scale)


def datum_weights(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Scales that differ between data, by the plate whose elements they weigh: shape (size of the plate,), float64.

    A scale of two counts an element, with all that depends on it, twice.

    Raises:
        ModelError: a scale that varies over anything but one plate, or not over all sites of that plate alike.
    """
    found: dict[str, Tensor] = {}
    for name, site in sites.items():
        scale = site["scale"]
        if isinstance(scale, Tensor) and scale.numel() > 1:
            plates = plates_of(site, site["fn"].batch_shape)
            varying = [i - scale.dim() for i, size in enumerate(scale.shape) if size > 1]
            if len(varying) != 1 or varying[0] not in plates:
                raise ModelError(_odd_scale(name, scale))
            found.setdefault(plates[varying[0]].name, scale.detach().reshape(-1).to(torch.float64))
    for name, site in sites.items() if found else ():
        scale = site["scale"]
        for plate in plates_of(site, site["fn"].batch_shape).values():
            weight = found.get(plate.name)
            if weight is None:
                continue
            if not isinstance(scale, Tensor) or not torch.equal(scale.reshape(-1).to(torch.float64), weight):
                raise ModelError(
                    f"Plate {plate.name!r} has sites with a poutine.scale for each of its elements, and site {name!r}, "
                    f"which has not the same. {ONE_SCALE}"
                )
    return found


def _odd_scale(name: str, scale: Tensor) -> str:
    return (
        f"Site {name!r} has a poutine.scale of shape {tuple(scale.shape)}, which is not one number for each element of "
        f"one of its plates. {ONE_SCALE}"
    )


ONE_SCALE = (
    "Exact summation needs one scalar scale for all sites that share a latent, or one scale for each element of a "
    "plate around all sites in that plate. Put the body of the plate under one poutine.scale, or give the weights to "
    "fit(..., weights=)."
)
