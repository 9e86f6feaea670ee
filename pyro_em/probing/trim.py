"""Latents of a chain whose law is the same at all times, or in all rows: one table for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyro_em.probing.probe import ProbedSite
from pyro_em.probing.routes import Affine, Opaque, Route, Selected
from pyro_em.probing.sites import SiteParts
from pyro_em.probing.stacks import each

__all__ = ["trimmed"]


def trimmed(site: ProbedSite) -> ProbedSite:
    """A latent's stack without the axes of rows, and of time, along which none of its arguments differ."""
    parts = site.parts
    if not isinstance(parts, SiteParts) or parts.stack is None or parts.own is None:
        return site
    sizes = [parts.data.shape, *(_shape(r) for r in site.routes.values())]
    time = [i for i, p in enumerate(parts.plates) if p == parts.stack.time]
    rows = [i for i in range(len(parts.plates)) if i not in time]
    gone = [i for axes in (rows, time) if all(s[i] == 1 for s in sizes for i in axes) for i in axes]
    kept = tuple(p for i, p in enumerate(parts.plates) if i not in gone)
    scope = tuple(replace(v, plates=tuple(p for p in v.plates if p in kept)) for v in parts.scope)

    def without(t: Tensor) -> Tensor:
        for axis in sorted(gone, reverse=True):
            t = t.narrow(axis, 0, 1).squeeze(axis)
        return t

    own = scope[parts.scope.index(parts.own)]
    parts = replace(each(parts, without), plates=kept, scope=scope, own=own)
    return replace(site, parts=parts, routes={n: _route(r, without) for n, r in site.routes.items()})


def _shape(route: Route) -> torch.Size:
    """Sizes along the leading axes of a route that is known."""
    assert not isinstance(route, Opaque)
    return route.index.shape if isinstance(route, Selected) else route.offset.shape


def _route(route: Route, change: Callable[[Tensor], Tensor]) -> Route:
    if isinstance(route, Selected):
        return replace(route, index=change(route.index))
    assert isinstance(route, Affine)
    return replace(route, design=change(route.design), offset=change(route.offset))
