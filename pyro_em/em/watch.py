"""Components that collapse under the gradient: found in the runs of the program, named, and refused.

Closed forms see a spread go to nothing as they solve for it. What a gradient moves is looked at where each E-step runs
the program: its observed sites tell their spreads, and a backward pass tells the parameter behind one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.compiled.collapse import COLLAPSED
from pyro_em.em.shares import Share
from pyro_em.errors import DegenerateError
from pyro_em.families import family_of
from pyro_em.graph import FactorGraph, alike
from pyro_em.graph.build import Structure
from pyro_em.graph.density import without_missing
from pyro_em.graph.trace import Site
from pyro_em.probing.sites import core_of

__all__ = ["Narrow", "Watch"]


@dataclass(frozen=True)
class Narrow:
    """A spread that is nothing beside the data.

    Attributes:
        site, argument: whose.
        shape: of the argument, over the site's axes.
        at: which of its elements, in one row.
        share: the data that it was seen with.
    """

    site: str
    argument: str
    shape: torch.Size
    at: int
    share: Share


@dataclass(frozen=True)
class Watch:
    """Looks at spreads.

    Attributes:
        dtype: of the arithmetic, which tells how little is nothing.
        variances: of the data of each site, about as they are in the first share, once it was looked at.
    """

    dtype: torch.dtype
    variances: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def look(self, share: Share, found: Structure, graph: FactorGraph) -> Narrow | None:
        """The first spread of a run that is nothing, if any is."""
        for name, site in found.sites.items():
            spread = _spread(site)
            if spread is None:
                continue
            if name not in self.variances:
                self.variances.update(_variances(alike(graph, name), found))
            narrow = spread.value.square() <= COLLAPSED[self.dtype] * self.variances[name]
            if bool(narrow.any()):
                return Narrow(name, spread.argument, narrow.shape, int(narrow.reshape(-1).long().argmax()), share)
        return None

    def error(self, narrow: Narrow, leaves: Mapping[str, Tensor]) -> DegenerateError | None:
        """Who brought it about; ``None``, if none of these leaves did. The parameters are still in place."""
        with torch.enable_grad():
            spread = _spread(narrow.share.structure().sites[narrow.site])
            assert spread is not None
            value = spread.value.expand(narrow.shape).reshape(-1)[narrow.at]
        if not value.requires_grad:
            return None
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        behind = {n: s.abs() for n, s in zip(leaves, slopes, strict=True) if s is not None and bool(s.any())}
        if not behind:
            return None
        name = max(behind, key=lambda n: float(behind[n].max()))
        slope = behind[name]
        element = tuple(int(i) for i in torch.unravel_index(slope.argmax(), slope.shape)) if slope.dim() else ()
        return DegenerateError(
            f"A component collapsed: {narrow.argument} of site {narrow.site!r}, given by parameter {name!r} at "
            f"{list(element)}, fell to {float(value.detach()):.3g}, which is nothing beside the data. The likelihood "
            "has no maximum there. Share the parameter over components, give it a prior or the argument a lower bound, "
            'or start elsewhere (restarts=, start=, on_degenerate="restart"); "floor" and "drop" hold for parameters '
            "that have a closed form.",
            name,
            element,
            float(value.detach()),
        )


@dataclass(frozen=True)
class _Spread:
    """The argument of a distribution that shrinks to nothing about one datum.

    Attributes:
        argument: its name.
        value: over the site's batch and event axes.
        data: over the same.
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
    family, data = kind.of(fn, site["value"]), without_missing(site)
    value = family.arguments(fn)[form.name]
    if form.rank == 2:
        value = value.diagonal(dim1=-2, dim2=-1)
    return _Spread(form.name, value, family.data(fn, data), core.events + family.rank)


def _of_location_and_scale(fn: Any, site: Site, events: int) -> _Spread | None:
    """The scale of a family on the real line that is not known otherwise (Laplace, Cauchy, Gumbel)."""
    scale = getattr(fn, "scale", None)
    on_the_line = getattr(fn, "support", None) is constraints.real and hasattr(fn, "loc")
    if not isinstance(scale, Tensor) or not on_the_line:
        return None
    return _Spread("scale", scale, without_missing(site), events)


def _variances(names: list[str], found: Structure) -> dict[str, Tensor]:
    """For each of some sites that are alike, the variance of the data of all, over event axes."""
    spreads = [s for s in (_spread(found.sites[n]) for n in names) if s is not None]
    shape = torch.Size(max(sizes) for sizes in zip(*(_event(s) for s in spreads), strict=True))
    rows = [s.data.expand([*s.data.shape[: s.data.dim() - s.events], *shape]).reshape(-1, *shape) for s in spreads]
    data = torch.cat(rows).detach().to(torch.float64)
    mean = data.mean(0)
    least = (1e-8 * mean).square()  # of constant data, what rounding leaves
    return dict.fromkeys(names, (data - mean).square().mean(0).maximum(least))


def _event(spread: _Spread) -> torch.Size:
    return spread.data.shape[spread.data.dim() - spread.events :]
