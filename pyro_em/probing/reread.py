"""A batch read with what was found out on the first: which of its routes hold, and what is the batch's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_em.graph import Plate
from pyro_em.probing.affine import design_of
from pyro_em.probing.coordinates import Coordinates
from pyro_em.probing.match import match
from pyro_em.probing.probe import ProbedSite
from pyro_em.probing.routes import Affine, Opaque, Route, Selected, values_of
from pyro_em.probing.runs import Run
from pyro_em.probing.sites import SiteParts

__all__ = ["are_explained", "are_of_a_kind", "reread"]


Draw = tuple[Tensor, SiteParts]  # distinct parameters, and the site in a run at them


def reread(
    known: ProbedSite, parts: SiteParts, run: Run, coordinates: Coordinates, draws: Sequence[Draw] = ()
) -> ProbedSite | None:
    """A site of a batch; ``None`` where it is of another kind.

    Args:
        known: with routes as on another batch.
        parts: of the batch's run, which kept its gradients if the site has a design.
        draws: of the same batch, by which selections are told; none where these are the same for all data.
    """
    routes = {}
    for argument in known.routes:
        route = _own(known, argument, parts, run, coordinates, draws)
        if route is None:
            return None
        routes[argument] = route
    detached = {n: a.detach() for n, a in parts.arguments.items()}
    return replace(known, parts=replace(parts, arguments=detached), routes=routes)


def _own(
    known: ProbedSite, name: str, parts: SiteParts, run: Run, coordinates: Coordinates, draws: Sequence[Draw]
) -> Route | None:
    route = known.routes[name]
    if isinstance(route, Affine):
        return design_of(route.link, parts.arguments[name], parts.logits, run.theta, run.leaves, coordinates)
    if not draws or not isinstance(route, Selected):
        return route
    form = next(a for a in parts.family.args if a.name == name)
    values = [d.arguments[name] for _, d in draws]
    exact = values[0].dtype == torch.float64
    thetas = [theta for theta, _ in draws]
    found = match(form, [v.detach().to(torch.float64) for v in values], thetas, coordinates, exact)
    if found is None or (not found.is_constant and found.link != route.link):
        return None
    return replace(found, link=route.link)


def are_explained(
    parts: SiteParts, routes: Mapping[str, Route], coordinates: Coordinates, theta: Tensor, growing: Collection[str]
) -> bool:
    """Whether selections found on another batch, the same for all its data, give this batch's arguments at theta.

    Args:
        growing: names of the plates of data.
    """
    data_axes = [i for i, d in enumerate(parts.dims) if isinstance(d, Plate) and d.name in growing]
    for name, argument in parts.arguments.items():
        route = routes[name]
        if isinstance(route, Affine):
            continue
        if not isinstance(route, Selected) or any(route.index.shape[i] > 1 for i in data_axes):
            return False
        expected = values_of(route, coordinates, theta)
        if any(a != b and 1 not in (a, b) for a, b in zip(argument.shape, expected.shape, strict=True)):
            return False
        tolerance = 1e-9 if argument.dtype == torch.float64 else 1e-5
        found, wanted = torch.broadcast_tensors(argument.detach().to(torch.float64), expected)
        if not torch.allclose(found, wanted, rtol=tolerance, atol=0):
            return False
    return True


def are_of_a_kind(own: ProbedSite, known: ProbedSite, coordinates: Coordinates) -> bool:
    """Whether the arguments of a site come about alike on two batches: by the same links, affine in the same parameters
    or selections of any.
    """
    return own.routes.keys() == known.routes.keys() and all(
        _is_of_a_kind(own.routes[name], route, coordinates) for name, route in known.routes.items()
    )


def _is_of_a_kind(own: Route, known: Route, coordinates: Coordinates) -> bool:
    if isinstance(own, Opaque):
        return False
    if isinstance(own, Selected) and own.is_constant:  # covariates that are all zero here
        return True
    if isinstance(known, Selected):
        return isinstance(own, Selected) and (known.is_constant or own.link == known.link)
    assert isinstance(known, Affine)
    columns = own.columns if isinstance(own, Affine) else own.index[own.index >= 0]
    owner = coordinates.owner()
    return own.link == known.link and set(owner[columns].tolist()) <= set(owner[known.columns].tolist())
