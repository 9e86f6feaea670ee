"""Second derivatives of an objective in the free coordinates of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.diagnostics.freedom import Freedom

__all__ = ["Curvature", "curvature"]


@dataclass(frozen=True)
class Curvature:
    """Gradient, shape (R,), and Hessian, shape (R, R), float64, in nats and the coordinates of the freedoms in turn."""

    gradient: Tensor
    hessian: Tensor


def curvature(objective: Callable[[], Tensor], freedoms: Sequence[Freedom]) -> Curvature:
    """Differentiate twice, at the values in place.

    By a second backward pass through the exact gradient. Where some operation has no second derivative, or one that a
    finite difference along a direction belies (a backward pass that detaches), by central differences of the exact
    gradient.

    Args:
        objective: total nats, differentiable in the leaves.
        freedoms: of the parameters.
    """
    leaves = [f.leaf.unconstrained for f in freedoms]
    with torch.enable_grad():
        gradients = _gradients(objective, leaves, create_graph=True)
    gradient = _free([g.detach() for g in gradients], freedoms)
    try:
        columns = [_free(_second(gradients, leaves, d), freedoms) for d in _directions(freedoms)]
    except RuntimeError:  # an operation in the model has no second derivative
        return Curvature(gradient, _by_differences(objective, freedoms))
    hessian = torch.stack(columns, 1) if columns else torch.zeros(0, 0, dtype=torch.float64)
    if not _agrees(objective, freedoms, hessian):
        hessian = _by_differences(objective, freedoms)
    return Curvature(gradient, (hessian + hessian.mT) / 2)


def _gradients(objective: Callable[[], Tensor], leaves: list[Tensor], create_graph: bool) -> list[Tensor]:
    value = objective()
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def _second(gradients: list[Tensor], leaves: list[Tensor], direction: list[Tensor]) -> list[Tensor]:
    """The Hessian times a direction."""
    terms = [(g * d).sum().to(torch.float64) for g, d in zip(gradients, direction, strict=True) if g.requires_grad]
    if not terms:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(torch.stack(terms).sum(), leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def _free(gradients: list[Tensor], freedoms: Sequence[Freedom]) -> Tensor:
    """Derivatives in the leaves as derivatives in free coordinates, one vector."""
    parts = [
        f.gathered(torch.einsum("bm,bmr->br", f.events(g.to(torch.float64)), f.basis))
        for g, f in zip(gradients, freedoms, strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _step(coordinates: Tensor, freedoms: Sequence[Freedom]) -> list[Tensor]:
    """A vector of free coordinates as steps of the leaves."""
    parts = coordinates.split([f.size for f in freedoms])
    return [
        torch.einsum("br,bmr->bm", f.scattered(part), f.basis)
        .reshape(f.leaf.unconstrained.shape)
        .to(f.leaf.unconstrained)
        for part, f in zip(parts, freedoms, strict=True)
    ]


def _directions(freedoms: Sequence[Freedom]) -> list[list[Tensor]]:
    total = sum(f.size for f in freedoms)
    return [_step(row, freedoms) for row in torch.eye(total, dtype=torch.float64)]


def _difference(objective: Callable[[], Tensor], freedoms: Sequence[Freedom], step: Tensor) -> Tensor:
    """The Hessian times a step of free coordinates, by central differences of the gradient."""
    leaves = [f.leaf.unconstrained for f in freedoms]
    before = [leaf.detach().clone() for leaf in leaves]
    moves, found = _step(step, freedoms), []
    for sign in (1, -1):
        for leaf, old, move in zip(leaves, before, moves, strict=True):
            leaf.data.copy_(old + sign * move)
        with torch.enable_grad():
            found.append(_free(_gradients(objective, leaves, create_graph=False), freedoms))
    for leaf, old in zip(leaves, before, strict=True):
        leaf.data.copy_(old)
    return (found[0] - found[1]) / 2


def _by_differences(objective: Callable[[], Tensor], freedoms: Sequence[Freedom]) -> Tensor:
    """The Hessian, each coordinate moved by a small part of its own standard error, once that is roughly known."""
    total = sum(f.size for f in freedoms)
    rough = torch.full((total,), 1e-5, dtype=torch.float64)
    unit = torch.eye(total, dtype=torch.float64)
    diagonal = torch.stack([_difference(objective, freedoms, rough[i] * unit[i])[i] / rough[i] for i in range(total)])
    steps = _width(freedoms) * _scales(diagonal)
    columns = [_difference(objective, freedoms, steps[i] * unit[i]) / steps[i] for i in range(total)]
    hessian = torch.stack(columns, 1)
    return (hessian + hessian.mT) / 2


def _scales(diagonal: Tensor) -> Tensor:
    """One standard error of each coordinate given the others, at most one."""
    return diagonal.abs().clamp_min(1.0).rsqrt()


def _width(freedoms: Sequence[Freedom]) -> float:
    """Of a step, in standard errors: balances rounding against the next derivatives."""
    single = any(f.leaf.unconstrained.dtype != torch.float64 for f in freedoms)
    return 3e-2 if single else 1e-4


def _agrees(objective: Callable[[], Tensor], freedoms: Sequence[Freedom], hessian: Tensor) -> bool:
    """Whether a difference along a generic direction says the same; not asked in single precision, which cannot."""
    if not len(hessian) or any(f.leaf.unconstrained.dtype != torch.float64 for f in freedoms):
        return True
    scales = _scales(hessian.diagonal())
    step = _width(freedoms) * scales * torch.linspace(1.0, 2.0, len(hessian), dtype=torch.float64).cos()
    expected, found = scales * (hessian @ step), scales * _difference(objective, freedoms, step)
    if not bool(torch.isfinite(found).all() and torch.isfinite(expected).all()):
        return True  # what is not finite is reported by name
    return bool((expected - found).norm() <= 1e-3 * _width(freedoms) * len(hessian) ** 0.5)
