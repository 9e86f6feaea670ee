"""Standard errors from the observed information, minus the Hessian of the log evidence at the fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_em.diagnostics.curvature import curvature
from pyro_em.diagnostics.freedom import Freedom, element_labels
from pyro_em.errors import InformationError
from pyro_em.params import Leaf

__all__ = ["Information", "observed_information"]

MAX_COORDINATES = 5000
FLAT = 1e-4  # information on a logarithm or log-odds, nats: a standard error of 100 there says nothing
FAR = 0.1  # standard errors between the fit and the maximum that are worth a warning


@dataclass(frozen=True)
class Information:
    """The asymptotic covariance of the estimates.

    Attributes:
        freedoms: free coordinates of each parameter.
        covariance: of all free coordinates in turn, shape (R, R): the inverse of the observed information.
    """

    freedoms: tuple[Freedom, ...]
    covariance: Tensor

    def stderr(self) -> dict[str, Tensor]:
        """By parameter, the standard error of each element in constrained space: the delta method's
        sqrt(diag(J C J')).
        """
        return {
            f.leaf.name: torch.einsum("bqr,brs,bqs->bq", f.slope, c, f.slope).clamp_min(0.0).sqrt().reshape(_shape(f))
            for f, c in zip(self.freedoms, self._own, strict=True)
        }

    def vcov(self) -> pd.DataFrame:
        """Covariances of all elements in constrained space, J C J', labelled ``name[i,j]``."""
        slopes = [row[:, live] for f in self.freedoms for row, live in zip(f.slope, f.live, strict=True)]
        jacobian = torch.block_diag(*slopes) if slopes else torch.zeros(0, 0, dtype=torch.float64)
        labels = [label for f in self.freedoms for label in element_labels(f.leaf.name, _shape(f))]
        return pd.DataFrame((jacobian @ self.covariance @ jacobian.mT).numpy(), index=labels, columns=labels)

    def confint(self, level: float) -> pd.DataFrame:
        """Wald intervals by element, columns ``lower`` and ``upper``; see :meth:`pyro_em.FitResult.confint`."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1; got {level}.")
        z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
        errors = self.stderr()
        parts = [_interval(f, c, errors[f.leaf.name], z) for f, c in zip(self.freedoms, self._own, strict=True)]
        bounds = torch.cat(parts) if parts else torch.zeros(0, 2, dtype=torch.float64)
        labels = [label for f in self.freedoms for label in element_labels(f.leaf.name, _shape(f))]
        return pd.DataFrame(bounds.numpy(), index=labels, columns=["lower", "upper"])

    @cached_property
    def _own(self) -> list[Tensor]:
        """The covariance of each parameter's own coordinates, event by event: shape (B, r, r), zero where not live."""
        found, at = [], 0
        for f in self.freedoms:
            own = torch.zeros(*f.live.shape, f.live.shape[-1], dtype=torch.float64)
            index = f.scattered(at + torch.arange(f.size))
            each = self.covariance[index[:, :, None], index[:, None, :]] if f.size else own
            found.append(torch.where(f.live[:, :, None] & f.live[:, None, :], each, own))
            at += f.size
        return found


def _shape(freedom: Freedom) -> torch.Size:
    return freedom.leaf.value().shape


def _interval(freedom: Freedom, covariance: Tensor, errors: Tensor, z: float) -> Tensor:
    """Lower and upper bounds, shape (elements, 2)."""
    value = freedom.value
    if freedom.is_elementwise:
        half = z * covariance.reshape(-1).sqrt().reshape(freedom.leaf.unconstrained.shape)
        u = freedom.leaf.unconstrained.detach().to(torch.float64)
        ends = [transform_to(freedom.constraint)(end).reshape(-1) for end in (u - half, u + half)]
        return torch.stack(ends, 1).sort(1).values
    if freedom.is_simplex:
        half = torch.where(errors > 0, z * errors / (value * (1 - value)), 0.0)  # zeros and ones that stay
        return torch.stack([(value.logit() + sign * half).sigmoid().reshape(-1) for sign in (-1, 1)], 1)
    return torch.stack([(value + sign * z * errors).reshape(-1) for sign in (-1, 1)], 1)


def observed_information(objective: Callable[[], Tensor], leaves: Mapping[str, Leaf]) -> Information:
    """Invert minus the Hessian of the objective in free coordinates, or say which parameter forbids it.

    Args:
        objective: log p(x), with the log-priors that the fit counted; total nats, differentiable.
        leaves: the parameters that moved, at their fitted values.

    Raises:
        InformationError: a parameter at the edge of its constraint, or one that the data do not determine, or a point
            that is no maximum.
    """
    freedoms = tuple(Freedom(leaf) for leaf in leaves.values())
    size = sum(f.leaf.unconstrained.numel() for f in freedoms)
    if size > MAX_COORDINATES:
        raise InformationError(
            f"Standard errors need a matrix over all free parameters; these have {size} numbers, and the limit is "
            f"{MAX_COORDINATES}. Keep the large ones as they are with fixed=, and fit the others."
        )
    _check_finite(freedoms)
    found = curvature(objective, freedoms)
    information = -found.hessian
    _check_flat(freedoms, information)
    covariance = _inverse(freedoms, information)
    _check_maximum(found.gradient, covariance)
    return Information(tuple(_kept(f) for f in freedoms), covariance)


def _kept(freedom: Freedom) -> Freedom:
    """A copy that stays when the fitted values leave the parameters."""
    return Freedom(replace(freedom.leaf, unconstrained=freedom.leaf.unconstrained.detach().clone()))


def _check_finite(freedoms: tuple[Freedom, ...]) -> None:
    for f in freedoms:
        if not bool(torch.isfinite(f.point).all() and torch.isfinite(f.leaf.value()).all()):
            raise InformationError(_at_the_edge(f, "is not finite in unconstrained coordinates"))


def _check_flat(freedoms: tuple[Freedom, ...], information: Tensor) -> None:
    at = 0
    for f in freedoms:
        own = information[at : at + f.size, at : at + f.size]
        at += f.size
        if not bool(torch.isfinite(own).all()):
            raise InformationError(_at_the_edge(f, "gives the log evidence derivatives that are not finite"))
        if not f.is_logarithmic or not f.size:
            continue
        spread = torch.block_diag(*f.basis)[:, f.live.reshape(-1)]  # from free coordinates to all
        each = torch.where(spread.any(1), ((spread @ own) * spread).sum(1).abs(), torch.inf)
        if bool((each <= FLAT).any()):
            label = element_labels(f.leaf.name, f.leaf.unconstrained.shape)[int(each.argmin())]
            raise InformationError(_at_the_edge(f, f"is flat there: the log evidence does not change with {label!r}"))


def _at_the_edge(freedom: Freedom, why: str) -> str:
    leaf = freedom.leaf
    value = str(leaf.value().detach().reshape(-1)[:8].tolist())
    return (
        f"Parameter {leaf.name!r} ({leaf.constraint}, about {value}) {why}. It is at the edge of its constraint, or "
        "the data say nothing about it, and it has no standard error. Write it as a constant in the model, leave out "
        f"the state that it belongs to, or start it inside and keep it with fixed=({leaf.name!r},), and fit the rest."
    )


def _inverse(freedoms: tuple[Freedom, ...], information: Tensor) -> Tensor:
    if not len(information):
        return information
    owner = [f.leaf.name for f in freedoms for _ in range(f.size)]
    if not bool(torch.isfinite(information).all()):
        raise InformationError(f"The second derivatives of the log evidence in {sorted(set(owner))} are not finite.")
    diagonal = information.diagonal()
    if bool((diagonal <= 0).any()):
        names = _names(owner, (diagonal <= 0).double())
        raise InformationError(_no_maximum(names, bool((diagonal < 0).any())))
    scale = diagonal.rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * information * scale)
    kinds = [f.leaf.unconstrained.dtype for f in freedoms]
    tolerance = 100 * len(owner) * max(torch.finfo(k).eps for k in kinds)
    if float(values[0]) <= tolerance:
        raise InformationError(_no_maximum(_names(owner, vectors[:, 0].abs()), float(values[0]) < -tolerance))
    return scale[:, None] * (vectors / values) @ vectors.mT * scale


def _names(owner: list[str], share: Tensor) -> list[str]:
    """Parameters with a large share in a direction."""
    return sorted({name for name, s in zip(owner, share.tolist(), strict=True) if s >= 0.3 * float(share.max())})


def _no_maximum(names: list[str], rises: bool) -> str:
    if rises:
        return (
            f"The fit is not at a maximum: the log evidence curves upwards along {names}. Go on from here with a "
            "smaller tol or more steps, or from another start."
        )
    return (
        f"The data do not determine {names}: along a combination of them the log evidence stays the same. Keep one of "
        "them with fixed=, give them a prior, or take fewer components."
    )


def _check_maximum(gradient: Tensor, covariance: Tensor) -> None:
    distance = float((gradient @ covariance @ gradient).clamp_min(0.0).sqrt())
    if distance > FAR:
        warnings.warn(
            f"The fit is {distance:.2g} standard errors away from the maximum of the log evidence, and these standard "
            "errors are those of the maximum to about as much. Go on: fit(..., strategy=EM(tol=1e-6), init=result).",
            RuntimeWarning,
            stacklevel=2,
        )
