"""Densities of point-estimated latents: their value at theta, and as pseudo-statistics where they are conjugate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
from pyro_em.graph.build import site_log_prob, site_scale
from pyro_em.graph.core import core_of
from pyro_em.graph.trace import Site
from pyro_em.probing import Coordinates

__all__ = ["Prior", "log_prior", "pseudo_statistics"]


SMOOTH = frozenset(
    """Normal MultivariateNormal LogNormal StudentT Cauchy Logistic Gumbel Gamma InverseGamma Exponential Weibull Beta
    HalfNormal HalfCauchy Chi2 Dirichlet VonMises""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Prior:
    """A prior whose own arguments no parameter touches.

    Attributes:
        name: the point-estimated latent.
        site: its trace node.
    """

    name: str
    site: Site

    @property
    def is_smooth(self) -> bool:
        """Whether its density is known to have second derivatives, as Newton's method needs."""
        return self.kind in SMOOTH

    @property
    def is_flat(self) -> bool:
        """Whether it prefers no value to another."""
        masks = [self.site["mask"], *(mask for mask, _ in core_of(self.site["fn"]).masks)]
        return self.kind == "ImproperUniform" or any(mask is False for mask in masks)

    @property
    def kind(self) -> str:
        """The name of its distribution."""
        return type(core_of(self.site["fn"]).fn).__name__

    def log_prob(self, value: Tensor) -> Tensor:
        """Total log-density at a value, in nats, float64."""
        table = site_log_prob({**self.site, "value": value, "is_observed": False, "infer": {}})
        return table.to(torch.float64).sum() * site_scale(self.name, self.site)


def log_prior(priors: Mapping[str, Prior], coordinates: Coordinates, theta: Tensor) -> Tensor:
    """The log-density of all point-estimated latents at theta, in nats."""
    values = coordinates.split(theta)
    total = torch.zeros((), dtype=torch.float64)
    for name, prior in priors.items():
        total = total + prior.log_prob(values[name])
    return total


def pseudo_statistics(book: Book, argument: str, prior: Prior, coordinates: Coordinates) -> Tensor | None:
    """What a prior adds to the statistics of an argument's values, shape (G, ...), zero for values of other
    parameters; ``None`` if it is not conjugate.
    """
    core = core_of(prior.site["fn"])
    masked = bool(core.masks) or prior.site["mask"] not in (None, True)
    added = None if masked else book.family.pseudo(argument, book.links[argument], core.fn)
    if added is None:
        return None
    shape, start = coordinates.shapes[prior.name], coordinates.starts()[prior.name]
    rows, size = book.rows[argument], torch.Size(shape).numel()
    inside = (rows >= start) & (rows < start + size)
    at = (rows - start).clamp(0, max(size - 1, 0))
    event = len(core.fn.event_shape)
    batch = torch.Size(shape[: len(shape) - event])
    scale = site_scale(prior.name, prior.site)
    if event == 2:  # one entry a matrix
        block = torch.Size(shape[-2:]).numel()
        table = added.expand(*batch, added.shape[-1]).reshape(-1, added.shape[-1])
        chosen, keep = table[at[:, 0, 0] // block], inside[:, 0, 0].unsqueeze(-1)
    elif event == 1:  # one entry an element
        chosen, keep = added.expand(shape).reshape(-1)[at], inside
    else:
        table = added.expand(*batch, added.shape[-1]).reshape(-1, added.shape[-1])
        chosen, keep = table[at], inside.unsqueeze(-1)
    return torch.where(keep, chosen, 0.0).to(torch.float64) * scale
