"""Run a model at distinct parameter values and read off how each parameter reaches each argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families import Argument
from pyro_em.graph import Intervention, Program
from pyro_em.graph.build import Structure, site_log_prob, structure
from pyro_em.graph.hidden import is_hidden
from pyro_em.params import ParamSpace
from pyro_em.probing.affine import affine
from pyro_em.probing.apart import read
from pyro_em.probing.branches import Branches
from pyro_em.probing.coordinates import Coordinates, distinct_values
from pyro_em.probing.hidden import hidden_parts
from pyro_em.probing.match import match
from pyro_em.probing.routes import Opaque, Route, Selected, values_of
from pyro_em.probing.sites import SiteParts, as_independent
from pyro_em.probing.smooth import trail
from pyro_em.probing.stacks import Pile, apart, find_piles

__all__ = ["Probed", "ProbedSite", "probe"]

LONG = 500  # sites, beyond which a run takes seconds: two sets of distinct values, and those of the start, must do
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


class _Substitute(Messenger):
    """Hand the model these tensors as parameter values, so that gradients can be taken in the values themselves."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


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
    runs: list[_Run] = []
    again = partial(_run, program, space, coordinates, (args, kwargs), intervention)
    here = again(found=found)
    try:
        for values in distinct_values(leaves)[: 2 if len(here.found.sites) > LONG else 3]:
            with torch.no_grad():
                space.assign(values)
            runs.append(again(first=not runs, piles=here.piles))
    finally:
        space.restore(start)
    sites = {n: _site(n, here, runs, coordinates, gradients) for n in here.parts}
    if any(_is_unexplained(route) for site in sites.values() for route in site.routes.values()):
        near = _near(space, again, here.piles)
        sites = {n: _with_designs(site, near, coordinates) for n, site in sites.items()}
    priors = {n: _prior(n, here, runs) for n in program.priors}
    return Probed(coordinates, sites, priors, here.found, here.piles)


@dataclass(frozen=True)
class _Run:
    """One run: its sites, those of a chain piled up, the parameters at its time, the tensors that gradients go back to
    (and those of the store, by identity, which a model may read behind Pyro's back), and the parameters it compares.
    """

    found: Structure
    piles: dict[str, Pile | None]
    parts: dict[str, SiteParts | str]
    theta: Tensor
    leaves: dict[str, Tensor]
    stored: dict[int, str]
    compared: frozenset[str]


def _run(
    program: Program,
    space: ParamSpace,
    coordinates: Coordinates,
    data: tuple[Any, Any],
    intervention: Intervention,
    first: bool = False,
    piles: dict[str, Pile | None] | None = None,
    found: Structure | None = None,
) -> _Run:
    leaves, latents = space.distinct(), set(space.latents())
    plain = {n for n, leaf in leaves.items() if n not in latents and leaf.constraint is constraints.real}
    values = {
        n: leaf.unconstrained if n in plain else leaf.value().detach().requires_grad_(first)
        for n, leaf in leaves.items()
    }
    theta = coordinates.flat(values)
    intervention.given = {n: values[n] for n in latents}
    substitute = _Substitute({n: v for n, v in values.items() if n not in plain and n not in latents})
    watch = Branches(values) if first else nullcontext()
    with torch.set_grad_enabled(first), pyro.validation_enabled(False), substitute, space.without_zeros():
        if found is None:
            with watch:
                trace = program.trace(*data, intervention)
            found = structure(trace, program.ignored)
        sites = {name: site for name, site in found.sites.items() if name not in latents}
        hidden = {name: site for name, site in sites.items() if is_hidden(site["fn"])}
        raws = {name: read(name, site, found) for name, site in sites.items() if name not in hidden}
        piles = find_piles(raws) if piles is None else piles
        parts = {name: apart(raws, pile, name) for name, pile in piles.items()}
        for name, site in hidden.items():
            parts.update(hidden_parts(name, site, found))
        parts = {name: _owned(part) for name, part in parts.items()}
    compared = frozenset(watch.compared) if isinstance(watch, Branches) else frozenset[str]()
    stored = {id(leaf.unconstrained): n for n, leaf in leaves.items()}
    return _Run(found, piles, parts, theta, values, stored, compared)


def _near(space: ParamSpace, again: Callable[..., _Run], piles: dict[str, Pile | None]) -> list[_Run]:
    """Runs at the parameters in place, and about as far from zero on this side and the other, where predictors stay
    within range.
    """
    start = space.snapshot()
    runs = [again(first=True, piles=piles)]
    try:
        for sign in (1.0, -1.0):
            space.restore({n: sign * u + 0.3 * torch.randn_like(u) for n, u in start.items()})
            runs.append(again(piles=piles))
    finally:
        space.restore(start)
    return runs


def _is_unexplained(route: Route) -> bool:
    return isinstance(route, Opaque) and route.reason == NOT_AFFINE


def _with_designs(site: ProbedSite, near: list[_Run], coordinates: Coordinates) -> ProbedSite:
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


def _owned(parts: SiteParts | str) -> SiteParts | str:
    """A site's parts, with arguments of their own: an argument may be a parameter itself, which is about to move."""
    if isinstance(parts, str):
        return parts
    logits = None if parts.logits is None else parts.logits.clone()
    return replace(parts, arguments={n: a.clone() for n, a in parts.arguments.items()}, logits=logits)


def _prior(name: str, here: _Run, runs: list[_Run]) -> tuple[str, ...]:
    """The parameters that move the prior of a point-estimated latent: by gradients, or, where none flow, all."""
    value = here.found.sites[name]["value"].detach()
    with torch.enable_grad():
        seen = [site_log_prob({**run.found.sites[name], "value": value}) for run in runs]
    params = trail(seen[0], runs[0].leaves).params
    params = tuple(p for p in params if p != name)
    alike = all(torch.equal(seen[0], other) for other in seen[1:])
    return params if params or alike else tuple(p for p in runs[0].leaves if p != name)


def _site(name: str, here: _Run, runs: list[_Run], coordinates: Coordinates, gradients: bool) -> ProbedSite:
    parts, seen = here.parts[name], [run.parts.get(name, "it is not in every run") for run in runs]
    if not isinstance(parts, SiteParts) or not all(isinstance(p, SiteParts) for p in seen):
        reason = parts if isinstance(parts, str) else next((p for p in seen if isinstance(p, str)), "")
        return ProbedSite(name, reason, {}, _params_of_density(here.found.sites[name], runs[0], name))
    parts, *known = as_independent([parts, *(p for p in seen if isinstance(p, SiteParts))])
    if any(p.data.shape != parts.data.shape or not _same(p.data, parts.data) for p in known):
        return ProbedSite(name, "its observed value depends on parameters", {}, tuple(coordinates.shapes))
    routes = {
        a.name: _route(
            a,
            [p.arguments[a.name] for p in known],
            parts.arguments[a.name],
            runs,
            here.theta,
            coordinates,
            gradients,
        )
        for a in parts.family.args
    }
    leaves = runs[0].leaves
    params = {p for a in parts.family.args for p in trail(known[0].arguments[a.name], leaves, runs[0].stored).params}
    return ProbedSite(name, parts, routes, tuple(n for n in leaves if n in params))


def _route(
    argument: Argument,
    draws: list[Tensor],
    here: Tensor,
    runs: list[_Run],
    theta: Tensor,
    coordinates: Coordinates,
    gradients: bool,
) -> Route:
    leaves, thetas = runs[0].leaves, [run.theta for run in runs]
    behind = trail(draws[0], leaves, runs[0].stored)
    params = behind.params
    if len({d.shape for d in draws}) > 1:
        return Opaque(params, "whose shape depends on parameter values")
    if not params and not all(torch.equal(draws[0], d) for d in draws[1:]):
        return Opaque((), "that changes with parameters through no differentiable path, or at random")
    if runs[0].compared & set(params):
        return Opaque(params, "and the model compares it with other values, so that it may branch")
    if behind.kink is not None:
        return Opaque(params, f"through {behind.kink!r}, which is not one smooth formula")
    exact = draws[0].dtype == torch.float64
    values = [d.detach().to(torch.float64) for d in draws]
    found = match(argument, values, thetas, coordinates, exact)
    if found is not None and not _explains(found, here, theta, coordinates):
        return Opaque(params, "but not at the values where the fit starts")
    if found is not None and (not gradients or _flows(draws[0], found, leaves)):
        return found
    if found is not None:
        return Opaque(params, "by value but not by gradient: part of it is detached")
    return Opaque(params, NOT_AFFINE)


def _explains(route: Selected, argument: Tensor, theta: Tensor, coordinates: Coordinates) -> bool:
    """Whether the route gives the argument at the values where the fit starts, which need not be distinct."""
    tolerance = 1e-7 if argument.dtype == torch.float64 else 1e-4
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


def _params_of_density(site: Any, run: _Run, name: str) -> tuple[str, ...]:
    first = run.found.sites.get(name)
    if first is None:
        return tuple(run.leaves)
    with torch.enable_grad():
        return trail(site_log_prob(first), run.leaves).params
