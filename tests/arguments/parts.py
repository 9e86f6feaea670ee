"""Data that every entry shares, and the mixture that most of them are: they differ in the emission only."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex
from torch import Tensor

from arguments.base import Made, f64

__all__ = [
    "BITS",
    "COUNTS",
    "FEATURES",
    "GROUPS",
    "PAIRS",
    "SERIES",
    "X",
    "locs",
    "mixture",
    "scale",
    "weights",
]

X = f64(
    [-2.31, -1.87, -1.52, -1.13, -0.94, -0.71, -0.38, 0.12, 0.47, 0.83, 1.06, 1.29, 1.58, 1.77, 2.04, 2.36, 2.71, 3.18]
)
GROUPS = torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 2, 1, 0])
COUNTS = f64([0, 3, 1, 7, 2, 5, 9, 1, 4, 6, 0, 2, 8, 3, 5, 1])
BITS = f64([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
BITS = torch.cat([BITS, f64([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]])])
FEATURES = torch.stack([torch.ones_like(X), torch.sin(2.3 * X + 0.7) + 0.4 * X], -1)
PAIRS = torch.stack([X, 0.5 * X + torch.cos(3.1 * X) + 0.3 * torch.sin(7.7 * X)], -1)
SERIES = torch.stack([X[i::3] + 0.2 * torch.cos(5.3 * X[i::3]) for i in (2, 0, 1)], -1)[:, [0, 2, 1]]
SERIES = torch.cat([SERIES, SERIES[:, :1].flip(0) * 0.7 + 0.3], -1)  # six sequences of four steps


def weights() -> Tensor:
    """The mixture's weights, a parameter."""
    return pyro.param("weights", f64([0.6, 0.4]), constraint=simplex)


def locs() -> Tensor:
    """One location for each of two components, a parameter."""
    return pyro.param("locs", f64([-0.8, 1.9]))


def scale() -> Tensor:
    """One scale for all components, a parameter."""
    return pyro.param("scale", f64(1.2), constraint=positive)


def mixture(
    emission: Callable[..., Any],
    x: Tensor = X,
    *columns: Tensor,
    prior: Callable[..., dist.TorchDistribution] = lambda *_: dist.Categorical(weights()),
) -> Made:
    """A mixture in a plate; the emission is a function of the latent and of further columns of the data."""

    def model(x: Tensor, *columns: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(*columns))
            pyro.sample("x", emission(z, *columns), obs=x)

    return model, (x, *columns), {}
