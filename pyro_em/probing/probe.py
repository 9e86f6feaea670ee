"""Run a model at distinct parameter values and read off how each parameter reaches each argument."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_em.families import Argument
from pyro_em.graph import Intervention, Program
from pyro_em.graph.build import Structure, site_log_prob
from pyro_em.params import ParamSpace
from pyro_em.probing.affine import PREDICTORS, affine
from pyro_em.probing.coordinates import Coordinates, distinct_values
from pyro_em.probing.match import match
from pyro_em.probing.routes import Affine, Opaque, Route, Selected, values_of
from pyro_em.probing.runs import Run, near, run
from pyro_em.probing.sites import SiteParts, as_independent
from pyro_em.probing.smooth import Trail, trail
from pyro_em.probing.stacks import Pile

__all__ = ["Probed", "ProbedSite", "explains", "probe"]

LONG = 500  # sites, beyond which a run takes seconds: the values of the start are the second draw, the end's a third
NOT_AFFINE = "through a non-affine function"


@dataclass(frozen=True)
class ProbedSite:
    """A site and the routes of its arguments.

    Attributes:
        parts: the site over named axes, at the parameters in place; a sentence where it cannot be taken apart.
        routes: by argument.
        params: parameters it depends on, as far as known.
    """

    name: str
    parts: SiteParts | str
    routes: dict[str, Route]
    params: tuple[str, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """The sites of a chain that are taken as this one; the site itself, on its own."""
        stack = None if isinstance(self.parts, str) else self.parts.stack
        return (self.name,) if stack is None else stack.members


@dataclass(frozen=True)
class Probed:
    """A probed model.

    Attributes:
        coordinates: of the parameters.
        sites: in the model's order, without the priors of point-estimated latents.
        priors: by such latent, the parameters that its prior depends on.
        found: the structure of the trace at the parameters in place.
        piles: which of its sites are taken as one; ``sites`` has the first of each.
    """

    coordinates: Coordinates
    sites: dict[str, ProbedSite]
    priors: dict[str, tuple[str, ...]]
    found: Structure
    piles: dict[str, Pile | None]


def probe(
    program: Program,
    space: ParamSpace,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    intervention: Intervention,
    gradients: bool = True,
    found: Structure | None = None,
) -> Probed:
    """Probe a model; its parameters hold what they held before.

    Args:
        gradients: whether to see that gradients flow where values do; on large data that takes the memory of tables.
        found: the structure of a run at the parameters in place, where there is one.

    Raises:
        ModelError: the model does not run at other parameter values.
    """
    leaves = space.distinct()
    coordinates = Coordinates.of(leaves)
    start = space.snapshot()
    runs: list[Run] = []
    again = partial(run, program, space, coordinates, (args, kwargs), intervention)
    here = again(found=found)
    try:
        for values in distinct_values(leaves)[: 1 if len(here.found.sites) > LONG else 3]:
            with torch.no_grad():
                space.assign(values)
            runs.append(again(first=not runs, piles=here.piles))
    finally:
        space.restore(start)
    sites = {n: _site(n, here, runs, coordinates, gradients) for n in here.parts}
    if any(_is_unexplained(route) for site in sites.values() for route in site.routes.values()):
        around = near(space, again, here.piles)
        sites = {n: _with_designs(site, around, coordinates) for n, site in sites.items()}
    priors = {n: _prior(n, here, runs) for n in program.priors}
    return Probed(coordinates, sites, priors, here.found, here.piles)


def explains(
    probed: Probed,
    program: Program,
    space: ParamSpace,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    intervention: Intervention,
) -> bool:
    """Whether the routes of a model that was probed give each argument of one run at the parameters in place.

    Raises:
        ModelError: the model does not run there.
    """
    here = run(program, space, probed.coordinates, (args, kwargs), intervention)
    return here.parts.keys() == probed.sites.keys() and all(
        _explains_site(site, here.parts[n], here.theta, probed.coordinates) for n, site in probed.sites.items()
    )


def _explains_site(site: ProbedSite, parts: SiteParts | str, theta: Tensor, coordinates: Coordinates) -> bool:
    known = site.parts
    if not isinstance(parts, SiteParts) or not isinstance(known, SiteParts):
        return False
    if type(parts.family) is not type(known.family):
        (parts,) = as_independent([parts])
    shapes, wanted = ({n: a.shape for n, a in p.arguments.items()} for p in (parts, known))
    if type(parts.family) is not type(known.family) or shapes != wanted:
        return False
    return all(_explains(route, parts.arguments[n], theta, coordinates) for n, route in site.routes.items())


def _is_unexplained(route: Route) -> bool:
    return isinstance(route, Opaque) and route.reason == NOT_AFFINE


def _with_designs(site: ProbedSite, near: list[Run], coordinates: Coordinates) -> ProbedSite:
    """The site with affine routes where there are any."""
    seen = [run.parts.get(site.name, "") for run in near]
    known = as_independent([p for p in seen if isinstance(p, SiteParts)])
    if not isinstance(site.parts, SiteParts) or len(known) < len(near):
        return site
    routes = dict(site.routes)
    for a in site.parts.family.args:
        if _is_unexplained(routes[a.name]) and all(a.name in p.arguments for p in known):
            draws, logits = [p.arguments[a.name] for p in known], [p.logits for p in known]
            if len({d.shape for d in draws}) == 1:
                thetas = [run.theta for run in near]
                found = affine(a, draws, logits, thetas, near[0].leaves, coordinates)
                routes[a.name] = found or routes[a.name]
    return replace(site, routes=routes)


def _prior(name: str, here: Run, runs: list[Run]) -> tuple[str, ...]:
    """The parameters that move the prior of a point-estimated latent: by gradients, or, where none flow, all."""
    value = here.found.sites[name]["value"].detach()
    with torch.enable_grad():
        seen = [site_log_prob({**run.found.sites[name], "value": value}) for run in (*runs, here)]
    params = trail(seen[0], runs[0].leaves).params
    params = tuple(p for p in params if p != name)
    alike = all(torch.equal(seen[0], other) for other in seen[1:])
    return params if params or alike else tuple(p for p in runs[0].leaves if p != name)


def _site(name: str, here: Run, runs: list[Run], coordinates: Coordinates, gradients: bool) -> ProbedSite:
    parts, seen = here.parts[name], [run.parts.get(name, "it is not in every run") for run in runs]
    if not isinstance(parts, SiteParts) or not all(isinstance(p, SiteParts) for p in seen):
        reason = parts if isinstance(parts, str) else next((p for p in seen if isinstance(p, str)), "")
        return ProbedSite(name, reason, {}, _params_of_density(here.found.sites[name], runs[0], name))
    parts, *known = as_independent([parts, *(p for p in seen if isinstance(p, SiteParts))])
    if any(p.data.shape != parts.data.shape or not _same(p.data, parts.data) for p in known):
        return ProbedSite(name, "its observed value depends on parameters", {}, tuple(coordinates.shapes))
    leaves, stored = runs[0].leaves, runs[0].stored
    routes, params = {}, set[str]()
    for a in parts.family.args:
        draws = [p.arguments[a.name] for p in known]
        values = _Values(draws, parts.arguments[a.name], trail(draws[0], leaves, stored))
        routes[a.name] = _route(a, values, runs, here.theta, coordinates, gradients)
        params.update(values.behind.params)
    return ProbedSite(name, parts, routes, tuple(n for n in leaves if n in params))


@dataclass(frozen=True)
class _Values:
    """An argument at the draws and at the parameters in place, and what lies behind the first draw."""

    draws: list[Tensor]
    here: Tensor
    behind: Trail


def _route(
    argument: Argument, seen: _Values, runs: list[Run], theta: Tensor, coordinates: Coordinates, gradients: bool
) -> Route:
    draws, params, leaves = seen.draws, seen.behind.params, runs[0].leaves
    thetas = [run.theta for run in runs]
    if len({d.shape for d in (*draws, seen.here)}) > 1:
        return Opaque(params, "whose shape depends on parameter values")
    if not params and not all(torch.equal(draws[0], d) for d in (*draws[1:], seen.here)):
        return Opaque((), "that changes with parameters through no differentiable path, or at random")
    if len(draws) == 1:
        draws, thetas = [*draws, seen.here], [*thetas, theta.detach()]
    if runs[0].compared & set(params):
        return Opaque(params, "and the model compares it with other values, so that it may branch")
    if seen.behind.kink is not None:
        return Opaque(params, f"through {seen.behind.kink!r}, which is not one smooth formula")
    exact = draws[0].dtype == torch.float64
    values = [d.detach().to(torch.float64) for d in draws]
    found = match(argument, values, thetas, coordinates, exact)
    if found is not None and not _explains(found, seen.here, theta, coordinates):
        return Opaque(params, "but not at the values where the fit starts")
    if found is not None and (not gradients or _flows(draws[0], found, leaves)):
        return found
    if found is not None:
        return Opaque(params, "by value but not by gradient: part of it is detached")
    return Opaque(params, NOT_AFFINE)


def _explains(route: Route, argument: Tensor, theta: Tensor, coordinates: Coordinates) -> bool:
    """Whether the route gives the argument at these values, which need not be distinct."""
    tolerance = 1e-7 if argument.dtype == torch.float64 else 1e-4
    if isinstance(route, Opaque):
        return False
    if isinstance(route, Affine):
        predictor = route.offset + route.design @ theta.detach()[route.columns]
        expected = PREDICTORS[route.link][1](predictor)
    else:
        expected = values_of(route, coordinates, theta.detach())
    return torch.allclose(argument.detach().to(torch.float64), expected, rtol=tolerance, atol=tolerance)


def _flows(argument: Tensor, route: Selected, leaves: dict[str, Tensor]) -> bool:
    """Whether gradients flow to every element that the index map names: a part may be detached."""
    if route.is_constant or not argument.requires_grad:
        return route.is_constant
    weights = torch.rand_like(argument) + 0.5
    with torch.enable_grad():
        found = torch.autograd.grad(
            (argument * weights).sum(), list(leaves.values()), allow_unused=True, retain_graph=True
        )
    flowing = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves.values(), found, strict=True)]
    return bool(torch.cat([g.reshape(-1) != 0 for g in flowing])[route.index[route.index >= 0]].all())


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other or one.layout is torch.sparse_csr:  # the caller's own object, in every run
        return one is other
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return bool(torch.equal(one, other)) or bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def _params_of_density(site: Any, run: Run, name: str) -> tuple[str, ...]:
    first = run.found.sites.get(name)
    if first is None:
        return tuple(run.leaves)
    with torch.enable_grad():
        return trail(site_log_prob(first), run.leaves).params
