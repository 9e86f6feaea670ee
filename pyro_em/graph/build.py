"""From an enumerated trace to a factor graph: which axis of which log-probability is which variable or plate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.density import log_prob, without_missing
from pyro_em.graph.factor import Factor, FactorGraph, HiddenSite, Layout, Plate, Prior, Variable
from pyro_em.graph.hidden import hidden_of, is_hidden
from pyro_em.graph.impossible import with_true_zeros
from pyro_em.graph.trace import Site, is_random

__all__ = [
    "Structure",
    "active_part",
    "axes_of",
    "broadcast",
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
        trace: from :func:`~pyro_em.graph.trace.run_enumerated`.
        priors: names of latents whose log-density is reported apart (point estimates).
        ignored: sites left out (imputed values that nothing depends on; latents the guide accounts for).

    Raises:
        ModelError: a log-probability has an axis that is neither a plate nor an enumerated latent, or a tensor scale.
    """
    return graph_of(structure(trace, ignored), priors)


def graph_of(found: Structure, priors: frozenset[str]) -> FactorGraph:
    """The factor graph of a structure."""
    factors = tuple(_factor(n, s, found) for n, s in found.sites.items() if n not in priors)
    weights = datum_weights({n: s for n, s in found.sites.items() if n not in priors})
    known = {n: _prior(n, found.sites[n]) for n in priors}
    return FactorGraph(factors, known, found.variables, found.layout, weights, _hidden(found))


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
    fn = site["fn"]
    while isinstance(fn, MaskedDistribution):  # Pyro would count a masked latent as one of uniform weights 1
        fn = fn.base_dist
    return with_true_zeros(fn).log_prob(site["value"])


def _variable(name: str, site: Site) -> tuple[Variable, Layout]:
    dim, fn = site["infer"]["_enumerate_dim"], site["fn"]
    value = site["value"]
    axis = value.dim() - fn.event_dim + dim
    if axis < 0:  # Pyro squeezes the axis of a latent with one state
        value, axis = value.reshape((1,) * -axis + tuple(value.shape)), 0
    support = value.movedim(axis, 0).reshape(value.shape[axis], -1, *value.shape[value.dim() - fn.event_dim :])[:, 0]
    plates = plates_of(site, fn.batch_shape)
    variable = Variable(name, support.shape[0], tuple(plates.values()))
    return variable, Layout(support.detach(), tuple(plates), fn)


def _prior(name: str, site: Site) -> Prior:
    density = site_log_prob(site)
    total = density.to(torch.float64).sum() * site_scale(name, site)
    return Prior(total, plates_of(site, density.shape), site["fn"].event_dim)


def _factor(name: str, site: Site, found: Structure) -> Factor:
    table, own = site_log_prob(site), found.variables.get(name)
    plates = plates_of(site, table.shape)
    axes = axes_of(name, table.shape, plates, variable_dims(site, found))
    scope = tuple(dict.fromkeys(v for v in axes.values() if isinstance(v, Variable)))
    if own is not None and own not in scope:
        scope += (own,)
    table = _arrange(table, axes, (*plates.values(), *scope)).to(torch.float64)
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
    return _arrange(mask, {i: plates[dim] for i, dim in sized}, tuple(plates.values()))


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


def _arrange(table: Tensor, axes: Mapping[int, Plate | Variable], target: tuple[Plate | Variable, ...]) -> Tensor:
    """The table over ``target``, repeated (without copying) along the plates it does not vary over."""
    kept = list(axes.items())
    table = table.reshape([d.size for _, d in kept])
    order = [i for t in target for i, (_, d) in enumerate(kept) if d == t]
    table = table.permute(order)
    present = {kept[i][1] for i in order}
    table = table.reshape([d.size if d in present else 1 for d in target])
    return table.expand([d.size for d in target])


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
    for name, site in sites.items():
        for plate in plates_of(site, site["fn"].batch_shape).values():
            scale = site["scale"]
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
