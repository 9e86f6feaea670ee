"""What tells that a component has collapsed, at an observed site: its spread beside its data, or its concentrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.compiled.sharp import concentrations
from pyro_em.families import family_of
from pyro_em.graph import Factor
from pyro_em.graph.build import plates_of
from pyro_em.graph.core import core_of
from pyro_em.graph.trace import Site
from pyro_em.probing.moments import Moments

__all__ = ["Spread", "concentration_of", "kind_of", "moments_of", "spread_of"]


@dataclass(frozen=True)
class Spread:
    """The argument of a distribution that shrinks to nothing about one datum.

    Attributes:
        argument: its name.
        value: over the site's batch and event axes.
        data: over the same; NaN where it is missing.
        events: how many of the axes are event axes.
    """

    argument: str
    value: Tensor
    data: Tensor
    events: int


def spread_of(site: Site) -> Spread | None:
    """That of an observed site; ``None`` where it has none."""
    if not site["is_observed"]:
        return None
    core = core_of(site["fn"])
    fn, kind = core.fn, family_of(core.fn)
    if kind is None:
        return _of_location_and_scale(fn, site, core.events)
    form = next((a for a in kind.args if a.spread), None)
    if form is None:
        return None
    family = kind.of(fn, site["value"])
    value = family.arguments(fn)[form.name]
    if form.rank == 2:
        value = value.diagonal(dim1=-2, dim2=-1)
    return Spread(form.name, value, family.data(fn, site["value"]), core.events + family.rank)


def kind_of(site: Site) -> object:
    """What sites of a chain that are alike have in common."""
    core = core_of(site["fn"])
    return site["is_observed"], type(core.fn), core.events, core.fn.event_shape


def concentration_of(site: Site) -> tuple[str, Tensor] | None:
    """The least of an observed site's concentrations in each element, and the name of one; ``None`` without any."""
    if not site["is_observed"]:
        return None
    core = core_of(site["fn"])
    kind = family_of(core.fn)
    names = [] if kind is None else concentrations(kind)
    if kind is None or not names:
        return None
    args = kind.of(core.fn, site["value"]).arguments(core.fn)
    rank = next(a.rank for a in kind.args if a.name == names[0])
    found = [args[n].flatten(args[n].dim() - rank).amin(-1) if rank else args[n] for n in names]
    return names[0], torch.stack(torch.broadcast_tensors(*found)).amin(0)


def _of_location_and_scale(fn: Any, site: Site, events: int) -> Spread | None:
    """The scale of a family on the real line that is not known otherwise (Laplace, Cauchy, Gumbel)."""
    scale = getattr(fn, "scale", None)
    on_the_line = getattr(fn, "support", None) is constraints.real and hasattr(fn, "loc")
    if not isinstance(scale, Tensor) or not on_the_line:
        return None
    return Spread("scale", scale, site["value"], events)


def moments_of(sites: Sequence[Site], factor: Factor) -> Moments:
    """Of the data of some sites that are alike, over the plates in which their latents live, or the outermost."""
    own = {p.name for v in factor.scope for p in v.plates} or {p.name for p in factor.plates[:1]}
    total: Moments | None = None
    for site in sites:
        spread = spread_of(site)
        assert spread is not None
        data = _seen(site, spread)
        batch = data.dim() - spread.events
        plates = plates_of(site, data.shape[:batch])
        inner = {batch + d for d, p in plates.items() if p.name not in own}
        found = Moments.of(data, [axis for axis in range(batch) if axis not in inner], keepdim=True)
        total = found if total is None else total + found
    assert total is not None
    return total


def _seen(site: Site, spread: Spread) -> Tensor:
    """The data, NaN where a mask hides them in all states."""
    data = spread.data.to(torch.float64)
    for mask, events in ((site["mask"], 0), *core_of(site["fn"]).masks):
        if isinstance(mask, Tensor) and mask.dim():
            full = mask.reshape([*mask.shape, *[1] * (spread.events - events)])
            while full.dim() > data.dim():
                full = full.any(0)
            data = torch.where(full, data, torch.nan)
    return data
