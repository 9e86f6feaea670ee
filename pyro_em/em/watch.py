"""Components that collapse under the gradient: found in the runs of the program, named, and refused.

Closed forms see a spread go to nothing as they solve for it. What a gradient moves is looked at where each E-step runs
the program: its observed sites tell their spreads, and a backward pass tells the parameter behind one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.compiled.collapse import COLLAPSED
from pyro_em.em.shares import Share
from pyro_em.errors import DegenerateError
from pyro_em.families import family_of
from pyro_em.graph import Factor, FactorGraph, alike
from pyro_em.graph.build import Structure, plates_of
from pyro_em.graph.trace import Site
from pyro_em.probing.moments import Moments
from pyro_em.probing.sites import core_of

__all__ = ["Narrow", "Watch"]


@dataclass(frozen=True)
class Narrow:
    """Spreads of a site that are nothing beside the data.

    Attributes:
        site: its name.
        where: which elements of the spread, over the site's axes.
        share: the data that they were seen with.
    """

    site: str
    where: Tensor
    share: Share


@dataclass
class Watch:
    """Looks at spreads, once moments of all data are known.

    Attributes:
        dtype: of the arithmetic, which tells how little is nothing.
        is_complete: whether all shares have been noted.
    """

    dtype: torch.dtype
    is_complete: bool = False
    _moments: dict[str, Moments] = field(default_factory=dict, repr=False)

    def note(self, found: Structure, graph: FactorGraph) -> None:
        """Add the data of a share to the moments."""
        factors, done = {f.name: f for f in graph.factors}, set[str]()
        for name, site in found.sites.items():
            if name in done or _spread(site) is None:
                continue
            names = [n for n in alike(graph, name) if _spread(found.sites[n]) is not None]
            own = _moments_of([found.sites[n] for n in names], factors[name])
            done.update(names)
            for n in names:
                self._moments[n] = self._moments[n] + own if n in self._moments else own

    def look(self, share: Share, found: Structure) -> list[Narrow]:
        """Spreads of a run that are nothing."""
        narrow = []
        for name, site in found.sites.items() if self.is_complete else ():
            spread = _spread(site)
            if spread is None or name not in self._moments:
                continue
            where = spread.value.square() <= COLLAPSED[self.dtype] * self._moments[name].variance
            if bool(where.any()):
                narrow.append(Narrow(name, where, share))
        return narrow

    def error(self, narrow: Sequence[Narrow], leaves: Mapping[str, Tensor]) -> DegenerateError | None:
        """The first of them that these leaves brought about; the parameters are still in place."""
        for one in narrow:
            error = _error(one, leaves)
            if error is not None:
                return error
        return None


def _error(narrow: Narrow, leaves: Mapping[str, Tensor]) -> DegenerateError | None:
    with torch.enable_grad():
        spread = _spread(narrow.share.structure().sites[narrow.site])
        assert spread is not None
        values = spread.value.expand(narrow.where.shape)[narrow.where]
    if not values.requires_grad:
        return None
    own = list(leaves.values())
    at = _moved(values, own)
    if at is None:
        return None
    slopes = torch.autograd.grad(values[at], own, allow_unused=True)
    behind = {n: s.abs() for n, s in zip(leaves, slopes, strict=True) if s is not None}
    name = max(behind, key=lambda n: float(behind[n].max()))
    slope, value = behind[name], float(values[at].detach())
    element = tuple(int(i) for i in torch.unravel_index(slope.argmax(), slope.shape)) if slope.dim() else ()
    return DegenerateError(
        f"A component collapsed: {spread.argument} of site {narrow.site!r}, given by parameter {name!r} at "
        f"{list(element)}, fell to {value:.3g}, which is nothing beside the data. The likelihood has no maximum there. "
        "Share the parameter over components, give it a prior or the argument a lower bound, or start elsewhere "
        '(restarts=, start=, on_degenerate="restart"); "floor" and "drop" hold for parameters that have a closed form.',
        name,
        element,
        value,
    )


def _moved(values: Tensor, leaves: Sequence[Tensor]) -> int | None:
    """Which of the values the leaves move most: the others may be constants. ``None`` where they move none.

    A vector-Jacobian product is linear in its vector, so its own derivative is the Jacobian without a pass a value.
    """
    vector = torch.ones_like(values, requires_grad=True)
    back = torch.autograd.grad(values, leaves, vector, create_graph=True, allow_unused=True)
    reached = [b for b in back if b is not None and b.requires_grad]
    if not reached:
        return None
    total = torch.stack([(b * b.detach()).sum() for b in reached]).sum()
    (moves,) = torch.autograd.grad(total, vector)
    return int(moves.abs().argmax()) if bool(moves.any()) else None


@dataclass(frozen=True)
class _Spread:
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


def _spread(site: Site) -> _Spread | None:
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
    return _Spread(form.name, value, family.data(fn, site["value"]), core.events + family.rank)


def _of_location_and_scale(fn: Any, site: Site, events: int) -> _Spread | None:
    """The scale of a family on the real line that is not known otherwise (Laplace, Cauchy, Gumbel)."""
    scale = getattr(fn, "scale", None)
    on_the_line = getattr(fn, "support", None) is constraints.real and hasattr(fn, "loc")
    if not isinstance(scale, Tensor) or not on_the_line:
        return None
    return _Spread("scale", scale, site["value"], events)


def _moments_of(sites: Sequence[Site], factor: Factor) -> Moments:
    """Of the data of some sites that are alike, over the plates in which their latents live, or the outermost."""
    own = {p.name for v in factor.scope for p in v.plates} or {p.name for p in factor.plates[:1]}
    total: Moments | None = None
    for site in sites:
        spread = _spread(site)
        assert spread is not None
        data = _seen(site, spread)
        batch = data.dim() - spread.events
        plates = plates_of(site, data.shape[:batch])
        inner = {batch + d for d, p in plates.items() if p.name not in own}
        found = Moments.of(data, [axis for axis in range(batch) if axis not in inner], keepdim=True)
        total = found if total is None else total + found
    assert total is not None
    return total


def _seen(site: Site, spread: _Spread) -> Tensor:
    """The data, NaN where a mask hides them in all states."""
    data = spread.data.to(torch.float64)
    for mask, events in ((site["mask"], 0), *core_of(site["fn"]).masks):
        if isinstance(mask, Tensor) and mask.dim():
            full = mask.reshape([*mask.shape, *[1] * (spread.events - events)])
            while full.dim() > data.dim():
                full = full.any(0)
            data = torch.where(full, data, torch.nan)
    return data
