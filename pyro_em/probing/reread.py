"""A batch read with what was found out on the first: which of its routes hold, and designs of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyro_em.graph import Plate
from pyro_em.probing.affine import design_of
from pyro_em.probing.coordinates import Coordinates
from pyro_em.probing.probe import ProbedSite
from pyro_em.probing.routes import Affine, Opaque, Route, Selected, values_of
from pyro_em.probing.runs import Run
from pyro_em.probing.sites import SiteParts

__all__ = ["are_explained", "are_of_a_kind", "reread"]


def reread(known: ProbedSite, parts: SiteParts, run: Run, coordinates: Coordinates) -> ProbedSite:
    """A site of a batch: selections as they are known, designs from the batch itself.

    Args:
        parts: of the batch's run, which kept its gradients if the site has a design.
    """
    routes = {n: _own(r, n, parts, run, coordinates) for n, r in known.routes.items()}
    detached = {n: a.detach() for n, a in parts.arguments.items()}
    return replace(known, parts=replace(parts, arguments=detached), routes=routes)


def _own(known: Route, argument: str, parts: SiteParts, run: Run, coordinates: Coordinates) -> Route:
    if not isinstance(known, Affine):
        return known
    found = design_of(known.link, parts.arguments[argument], parts.logits, run.theta, run.leaves, coordinates)
    assert found is not None, "a predictor that could be read when the batch was looked at"
    return found


def are_explained(parts: SiteParts, routes: Mapping[str, Route], coordinates: Coordinates, theta: Tensor) -> bool:
    """Whether selections found on another batch, the same for all its data, give this batch's arguments at theta."""
    data_axes = [i for i, d in enumerate(parts.dims) if isinstance(d, Plate)]
    for name, argument in parts.arguments.items():
        route = routes[name]
        if isinstance(route, Affine):
            continue
        if not isinstance(route, Selected) or any(route.index.shape[i] > 1 for i in data_axes):
            return False
        expected = values_of(route, coordinates, theta)
        tolerance = 1e-9 if argument.dtype == torch.float64 else 1e-5
        found, wanted = torch.broadcast_tensors(argument.detach().to(torch.float64), expected)
        if not torch.allclose(found, wanted, rtol=tolerance, atol=0):
            return False
    return True


def are_of_a_kind(own: ProbedSite, known: ProbedSite, coordinates: Coordinates) -> bool:
    """Whether what is affine on another batch is affine on this one, in the same parameters, behind the same link."""
    return all(
        _is_of_a_kind(own.routes.get(name, Opaque((), "")), route, coordinates)
        for name, route in known.routes.items()
        if isinstance(route, Affine)
    )


def _is_of_a_kind(own: Route, known: Affine, coordinates: Coordinates) -> bool:
    if isinstance(own, Opaque):
        return False
    if isinstance(own, Selected) and own.is_constant:  # covariates that are all zero here
        return True
    columns = own.columns if isinstance(own, Affine) else own.index[own.index >= 0]
    owner = coordinates.owner()
    return own.link == known.link and set(owner[columns].tolist()) <= set(owner[known.columns].tolist())
