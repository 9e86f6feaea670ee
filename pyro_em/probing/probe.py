"""Run a model at distinct parameter values and read off how each parameter reaches each argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families import Argument
from pyro_em.graph import Intervention, Program
from pyro_em.graph.build import Structure, structure
from pyro_em.params import ParamSpace
from pyro_em.probing.affine import affine
from pyro_em.probing.coordinates import Coordinates, distinct_values
from pyro_em.probing.match import match
from pyro_em.probing.routes import Opaque, Route
from pyro_em.probing.sites import SiteParts, as_independent, take_apart
from pyro_em.probing.smooth import trail

__all__ = ["Probed", "ProbedSite", "probe"]


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


@dataclass(frozen=True)
class Probed:
    """A probed model.

    Attributes:
        coordinates: of the parameters.
        sites: in the model's order; priors of point-estimated latents too.
        found: the structure of the trace at the parameters in place.
    """

    coordinates: Coordinates
    sites: dict[str, ProbedSite]
    found: Structure


class _Substitute(Messenger):
    """Hand the model these tensors as parameter values, so that gradients can be taken in the values themselves."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def probe(
    program: Program, space: ParamSpace, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention
) -> Probed:
    """Probe a model; its parameters hold what they held before.

    Raises:
        ModelError: the model does not run at other parameter values.
    """
    leaves = space.leaves()
    coordinates = Coordinates.of(leaves)
    start = space.snapshot()
    runs: list[_Run] = []
    try:
        for values in distinct_values(leaves):
            with torch.no_grad():
                space.assign(values)
            runs.append(_run(program, space, coordinates, (args, kwargs), intervention, first=not runs))
    finally:
        space.restore(start)
    here = _run(program, space, coordinates, (args, kwargs), intervention, first=False)
    sites = {name: _site(name, here, runs, coordinates) for name in here.found.sites}
    return Probed(coordinates, sites, here.found)


@dataclass(frozen=True)
class _Run:
    """One run: its sites, the parameters at its time, and the tensors that gradients go back to."""

    found: Structure
    parts: dict[str, SiteParts | str]
    theta: Tensor
    leaves: dict[str, Tensor]


def _run(
    program: Program,
    space: ParamSpace,
    coordinates: Coordinates,
    data: tuple[Any, Any],
    intervention: Intervention,
    first: bool,
) -> _Run:
    leaves, latents = space.leaves(), set(space.latents())
    plain = {n for n, leaf in leaves.items() if n not in latents and leaf.constraint is constraints.real}
    values = {
        n: leaf.unconstrained if n in plain else leaf.value().detach().requires_grad_(first)
        for n, leaf in leaves.items()
    }
    theta = coordinates.flat(values)
    intervention.given = {n: values[n] for n in latents}
    substitute = _Substitute({n: v for n, v in values.items() if n not in plain and n not in latents})
    with torch.set_grad_enabled(first), pyro.validation_enabled(False), substitute:
        trace = program.trace(*data, intervention)
        found = structure(trace, program.ignored)
        parts = {name: take_apart(name, site, found) for name, site in found.sites.items()}
    return _Run(found, parts, theta, values)


def _site(name: str, here: _Run, runs: list[_Run], coordinates: Coordinates) -> ProbedSite:
    parts, seen = here.parts[name], [run.parts.get(name, "it is not in every run") for run in runs]
    if not isinstance(parts, SiteParts) or not all(isinstance(p, SiteParts) for p in seen):
        reason = parts if isinstance(parts, str) else next((p for p in seen if isinstance(p, str)), "")
        return ProbedSite(name, reason, {}, _params_of_density(here.found.sites[name], runs[0], name))
    parts, *known = as_independent([parts, *(p for p in seen if isinstance(p, SiteParts))])
    if any(p.data.shape != parts.data.shape or not _same(p.data, parts.data) for p in known):
        return ProbedSite(name, "its observed value depends on parameters", {}, tuple(coordinates.shapes))
    routes = {a.name: _route(a, [p.arguments[a.name] for p in known], runs, coordinates) for a in parts.family.args}
    leaves = runs[0].leaves
    params = {p for a in parts.family.args for p in trail(known[0].arguments[a.name], leaves).params}
    return ProbedSite(name, parts, routes, tuple(n for n in leaves if n in params))


def _route(argument: Argument, draws: list[Tensor], runs: list[_Run], coordinates: Coordinates) -> Route:
    leaves, thetas = runs[0].leaves, [run.theta for run in runs]
    behind = trail(draws[0], leaves)
    params = behind.params
    if len({d.shape for d in draws}) > 1:
        return Opaque(params, "whose shape depends on parameter values")
    if not params and not all(torch.equal(draws[0], d) for d in draws[1:]):
        return Opaque((), "that changes with parameters through no differentiable path, or at random")
    if behind.kink is not None:
        return Opaque(params, f"through {behind.kink!r}, which is not one smooth formula")
    exact = draws[0].dtype == torch.float64
    values = [d.detach().to(torch.float64) for d in draws]
    found = match(argument, values, thetas, coordinates, exact)
    if found is not None:
        return found
    return affine(argument, draws, thetas, leaves, coordinates) or Opaque(params, "through a non-affine function")


def _same(one: Tensor, other: Tensor) -> bool:
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return bool(torch.equal(one, other)) or bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def _params_of_density(site: Any, run: _Run, name: str) -> tuple[str, ...]:
    from pyro_em.graph.build import site_log_prob

    first = run.found.sites.get(name)
    if first is None:
        return tuple(run.leaves)
    with torch.enable_grad():
        return trail(site_log_prob(first), run.leaves).params
