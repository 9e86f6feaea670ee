"""Arguments that are affine in the parameters, behind a link: the design matrix, confirmed at other parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.families import Argument
from pyro_em.probing.coordinates import Coordinates
from pyro_em.probing.routes import Affine

__all__ = ["PREDICTORS", "affine", "design_of"]

MAX_COLUMNS = 256
MAX_DESIGN = 2**25

Map = Callable[[Tensor], Tensor]


def _contrasts(probs: Tensor) -> Tensor:
    """Log-odds against the last category, which a shift of all logits leaves alone."""
    logs = probs.log()
    return logs - logs[..., -1:]


# By link: from the argument to its predictor, and back.
PREDICTORS: dict[str, tuple[Map, Map]] = {
    "identity": (lambda a: a, lambda eta: eta),
    "exp": (torch.log, torch.exp),
    "sigmoid": (torch.logit, torch.sigmoid),
    "softmax": (_contrasts, lambda eta: eta.softmax(-1)),
}


def affine(
    argument: Argument,
    draws: Sequence[Tensor],
    logits: Sequence[Tensor | None],
    thetas: Sequence[Tensor],
    leaves: Mapping[str, Tensor],
    coordinates: Coordinates,
) -> Affine | None:
    """The design behind an argument, if its predictor is affine in theta in all draws; else ``None``.

    Args:
        argument: which one.
        draws: its values, (*dims, *events, *block); the first with the graph behind it.
        logits: where the program gave logits, these: probabilities near zero or one have lost them.
        thetas: the parameters of each draw.
        leaves: where the graph ends, all elements of theta.
    """
    for link in _links(argument):
        predictors = [_predictor(link, a, b) for a, b in zip(draws, logits, strict=True)]
        found = _design(predictors, thetas, leaves, coordinates)
        if found is not None and len(found[0]):
            return Affine(*found, link)
    return None


def design_of(
    link: str,
    draw: Tensor,
    logits: Tensor | None,
    theta: Tensor,
    leaves: Mapping[str, Tensor],
    coordinates: Coordinates,
) -> Affine | None:
    """The design behind an argument that is known to be affine under a link, from one draw with the graph behind it;
    ``None`` where its predictor is not finite, or the design too large.
    """
    with torch.enable_grad():
        predictor = _predictor(link, draw, logits)
    value = predictor.detach().to(torch.float64)
    if not predictor.requires_grad:
        return Affine(torch.zeros(0, dtype=torch.long), value.new_zeros(*value.shape, 0), value, link)
    found = _design([predictor], [theta], leaves, coordinates)
    return None if found is None else Affine(*found, link)


def _predictor(link: str, argument: Tensor, logits: Tensor | None) -> Tensor:
    if logits is not None and link in ("sigmoid", "softmax"):
        return _from_logits(link, logits)
    return PREDICTORS[link][0](argument)


def _links(argument: Argument) -> tuple[str, ...]:
    if argument.domain in (constraints.real, constraints.real_vector):
        return ("identity",)
    if argument.rank == 0:
        return ("sigmoid", "identity") if argument.domain is constraints.unit_interval else ("exp", "identity")
    return ("softmax", "identity") if argument.domain is constraints.simplex else ()


def _from_logits(link: str, logits: Tensor) -> Tensor:
    return logits - logits[..., -1:] if link == "softmax" else logits


def _design(
    predictors: Sequence[Tensor], thetas: Sequence[Tensor], leaves: Mapping[str, Tensor], coordinates: Coordinates
) -> tuple[Tensor, Tensor, Tensor] | None:
    first = predictors[0]
    if not first.requires_grad or not all(bool(torch.isfinite(p).all()) for p in predictors):
        return None
    jacobian = _jacobian(first, leaves, coordinates)
    if jacobian is None:
        return None
    columns, design = jacobian
    values = [p.detach().to(torch.float64) for p in predictors]
    offset = values[0] - design @ thetas[0][columns]
    tolerance = 1e-10 if first.dtype == torch.float64 else 1e-3
    for value, theta in zip(values[1:], thetas[1:], strict=True):
        expected = offset + design @ theta[columns]
        if not torch.allclose(value, expected, rtol=tolerance, atol=tolerance * float(1 + value.abs().max())):
            return None
    return columns, design, offset


def _jacobian(
    predictor: Tensor, leaves: Mapping[str, Tensor], coordinates: Coordinates
) -> tuple[Tensor, Tensor] | None:
    """Columns of theta that matter, and derivatives in them, shape (*predictor, m): a vector-Jacobian product is
    linear in its vector, so the derivative of that product gives one column after the other without another run.
    """
    vector = torch.ones_like(predictor, requires_grad=True)
    names = list(leaves)
    with torch.enable_grad():
        back = torch.autograd.grad(predictor, list(leaves.values()), vector, create_graph=True, allow_unused=True)
        starts = coordinates.starts()
        columns: list[int] = []
        found: list[Tensor] = []
        for name, product in zip(names, back, strict=True):
            if product is None:
                continue
            if len(columns) + product.numel() > MAX_COLUMNS or predictor.numel() * product.numel() > MAX_DESIGN:
                return None
            for i, entry in enumerate(product.reshape(-1)):
                column = None
                if entry.requires_grad:
                    (column,) = torch.autograd.grad(entry, vector, retain_graph=True, allow_unused=True)
                if column is not None and bool(column.any()):
                    columns.append(starts[name] + i)
                    found.append(column.detach().to(torch.float64))
    if not columns:
        return torch.zeros(0, dtype=torch.long), predictor.new_zeros(*predictor.shape, 0, dtype=torch.float64)
    return torch.tensor(columns), torch.stack(found, -1)
