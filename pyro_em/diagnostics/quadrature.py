"""log p(x_n) of models with a few continuous latents per datum, by integrating them out on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_em.diagnostics.bound import Arguments
from pyro_em.diagnostics.evidence import Fitted
from pyro_em.errors import ModelError
from pyro_em.graph import FactorGraph, Intervention, Survey, survey
from pyro_em.graph.trace import draw_guide
from pyro_em.posterior import ExactPosterior
from pyro_em.strategy import Inference

__all__ = ["Quadrature", "integrate"]

MAX_DIMS = 3
GUIDE_DRAWS = 64
ROUNDS = 10
SETTLED = 1e-3  # nats per datum


@dataclass(frozen=True)
class Quadrature:
    """Integrals over the continuous latents of every datum.

    Attributes:
        log_evidence: log p(x), total nats.
        log_likelihood: log p(x_n), shape (N,), float64.
        error: an estimate of the absolute error of ``log_evidence``, nats: what every second node would have given,
            and the mass at the rim of the grids.
    """

    log_evidence: float
    log_likelihood: Tensor
    error: float


@dataclass(frozen=True)
class _Grid:
    """Standardised nodes: shape (S, d), and which of them are every second, and on the rim."""

    nodes: Tensor
    step: float
    second: Tensor
    rim: Tensor


@dataclass(frozen=True)
class _Site:
    """A latent: its map from unconstrained coordinates, their shape and number per datum, and the model's dtype."""

    transform: Any
    shape: torch.Size
    dims: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Integrand:
    """log p(x_n, c_n) + log |dc/du| for each datum, in unconstrained coordinates u of its continuous latents c."""

    inference: Inference
    data: Arguments
    plate: str
    sites: dict[str, _Site]

    def at(self, u: Tensor) -> Tensor:
        """Shape (N,), for u of shape (N, d)."""
        given, volume = {}, torch.zeros(len(u), dtype=torch.float64)
        parts = u.split([site.dims for site in self.sites.values()], 1)
        for (name, site), part in zip(self.sites.items(), parts, strict=True):
            point = part.reshape(site.shape)
            value = site.transform(point)
            volume = volume + site.transform.log_abs_det_jacobian(point, value).reshape(len(u), -1).sum(1)
            given[name] = value.to(site.dtype)
        graph = self.inference.graph(*self.data, Intervention(given=given))
        found = ExactPosterior(graph, {}).log_likelihoods
        if set(found) != {self.plate}:
            raise ModelError(
                f"Quadrature integrates one plate of data at a time, here {self.plate!r}; the model has densities in "
                f"{sorted(set(found) - {self.plate})} too."
            )
        return found[self.plate] + volume


def integrate(fitted: Fitted, num_points: int, width: float) -> Quadrature:
    """The trapezoidal rule about each datum's posterior; see :meth:`pyro_em.FitResult.evidence_by_quadrature`."""
    if num_points < 5 or num_points % 2 == 0:
        raise ValueError(
            f"num_points must be odd and at least 5, so that every second node is a grid; got {num_points}."
        )
    if not width > 0:
        raise ValueError(f"width is in standard deviations and must be positive; got {width}.")
    if not fitted.inference.guided:
        raise ModelError("All latents of this fit are summed out or point-estimated: log_evidence is exact already.")
    with torch.no_grad():
        integrand, draws = _open(fitted)
        mean, root = _moments(draws.transpose(0, 1), torch.zeros(len(draws), dtype=torch.float64))
        coarse, fine = _grid(num_points // 2 | 1, width, draws.shape[2]), _grid(num_points, width, draws.shape[2])
        before = None
        for _ in range(ROUNDS):
            logs = _values(integrand, coarse, mean, root)
            now = _integral(logs, coarse, root, coarse.step)
            points = mean.unsqueeze(1) + torch.einsum("nij,sj->nsi", root, coarse.nodes)
            mean, root = _moments(points, logs, coarse.step * root)
            if before is not None and bool(((now - before).abs() <= SETTLED).all()):
                break
            before = now
        return _result(_values(integrand, fine, mean, root), fine, root)


def _result(logs: Tensor, grid: _Grid, root: Tensor) -> Quadrature:
    found = _integral(logs, grid, root, grid.step)
    halved = _integral(logs[grid.second], grid, root, 2 * grid.step)
    rim = (logs[grid.rim].logsumexp(0) - logs.logsumexp(0)).exp()
    error = float(((found - halved).abs() + rim).sum())
    return Quadrature(float(found.sum()), found, error)


def _integral(logs: Tensor, grid: _Grid, root: Tensor, step: float) -> Tensor:
    volume = grid.nodes.shape[1] * math.log(step) + root.diagonal(dim1=-2, dim2=-1).log().sum(1)
    return logs.logsumexp(0) + volume


def _values(integrand: _Integrand, grid: _Grid, mean: Tensor, root: Tensor) -> Tensor:
    """Shape (S, N)."""
    return torch.stack([integrand.at(mean + root @ node) for node in grid.nodes])


def _grid(points: int, width: float, dims: int) -> _Grid:
    axis = torch.linspace(-width, width, points, dtype=torch.float64)
    index = torch.cartesian_prod(*[torch.arange(points)] * dims).reshape(-1, dims)
    rim = ((index == 0) | (index == points - 1)).any(1)
    # Every second node, counted from the middle one.
    second = ((index - points // 2) % 2 == 0).all(1)
    return _Grid(axis[index], float(axis[1] - axis[0]), second, rim)


def _moments(points: Tensor, logs: Tensor, cell: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean (N, d) and root of the covariance (N, d, d) of weighted points (N, S, d).

    Args:
        logs: log-weights, shape (S, N), or (S,) for all data alike.
        cell: sides of the grid's cells (N, d, d): a node stands for its cell, so that a posterior that falls between
            nodes is closed in on, not lost.
    """
    weights = logs.softmax(0).mT if logs.dim() == 2 else logs.softmax(0).expand(len(points), -1)
    mean = torch.einsum("ns,nsi->ni", weights, points)
    away = points - mean.unsqueeze(1)
    covariance = torch.einsum("ns,nsi,nsj->nij", weights, away, away)
    if cell is not None:
        covariance = covariance + cell @ cell.mT / 12
    scale = covariance.diagonal(dim1=-2, dim2=-1)
    floor = torch.where(scale > 1e-16, 1e-9 * scale, 1.0)  # a guide of point masses says nothing of the width
    return mean, torch.linalg.cholesky(covariance + torch.diag_embed(floor))


def _open(fitted: Fitted) -> tuple[_Integrand, Tensor]:
    """The integrand, and draws of the guide in its coordinates, shape (S, N, d)."""
    inference, data = fitted.inference, fitted.data
    _, intervention = draw_guide(inference.guide, *data, {})
    seen = survey(fitted.model, *data, Intervention(given=intervention.given))
    intervention.refuse_partial()
    names = [n for n in intervention.given if n in seen.trace.nodes]
    plate, size = _one_plate(names, seen)
    sites = {n: _site(n, seen, size) for n in names}
    dims = sum(s.dims for s in sites.values())
    if dims > MAX_DIMS:
        raise ModelError(
            f"Quadrature takes at most {MAX_DIMS} continuous latents per datum; {names} have {dims} together. Estimate "
            "log p(x) in another way and pass it as log_evidence=."
        )
    integrand = _Integrand(inference, data, plate, sites)
    graph: FactorGraph = inference.graph(*data, Intervention(given=intervention.given))
    if graph.weights or any(f.scale != 1.0 for f in graph.factors):
        raise ModelError("Quadrature is about plain densities of data; ask without poutine.scale.")
    draws = []
    for _ in range(GUIDE_DRAWS):
        given = draw_guide(inference.guide, *data, {})[1].given
        parts = [s.transform.inv(given[n]).reshape(size, -1) for n, s in sites.items()]
        draws.append(torch.cat(parts, 1).to(torch.float64))
    return integrand, torch.stack(draws)


def _one_plate(names: list[str], seen: Survey) -> tuple[str, int]:
    """The one data plate that holds the latents, directly."""
    frames = {n: [f for f in seen.site(n)["cond_indep_stack"] if f.name in seen.data_plates] for n in names}
    plates = {tuple(f.name for f in stack) for stack in frames.values()}
    if len(plates) != 1 or len(next(iter(plates))) != 1:
        raise ModelError(
            f"Quadrature needs every latent of the guide in one plate of data; {names} lie in {sorted(plates)}."
        )
    frame = next(iter(frames.values()))[0]
    return frame.name, int(frame.size)


def _site(name: str, seen: Survey, size: int) -> _Site:
    site = seen.site(name)
    if getattr(site["fn"].support, "is_discrete", True):
        raise ModelError(f"Quadrature is for continuous latents; {name!r} is discrete. Leave it out of the guide.")
    transform = biject_to(site["fn"].support)
    shape = transform.inv(site["value"]).shape
    return _Site(transform, shape, math.prod(shape) // size, site["value"].dtype)
