"""A Gaussian mixture with one full covariance per component.

    z_n            ~ Categorical(weights)                             n = 1 ... N
    x_n | z_n = k  ~ MultivariateNormal(locs[k], S_k),    S_k = scale_trils[k] scale_trils[k]'

    log p(x) = sum_n log sum_k weights[k] N(x_n; locs[k], S_k)

The likelihood is unbounded (a component can collapse on one point), so "the maximum" means the
highest one in the interior. Old Faithful with two components: -1130.264 (mclust's model VVV).

Source: McLachlan & Peel (2000), *Finite Mixture Models*, chapter 3; Fraley & Raftery (2002), JASA
97, 611-631. Data: Azzalini & Bowman (1990), see `data/README.md`.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "faithful.csv"

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.4, 0.6], dtype=torch.float64),
    "locs": torch.tensor([[2.0, 54.0], [4.3, 80.0]], dtype=torch.float64),
    "scale_trils": torch.tensor([[[0.3, 0.0], [1.5, 5.5]], [[0.4, 0.0], [2.3, 5.5]]], dtype=torch.float64),
}


def model(x: Tensor, num_components: int = 2) -> Tensor:
    """Draw the rows of `x` (N, D) from a mixture; return their components, integers of shape (N,).

    Parameters: `weights` (K,) on the simplex; `locs` (K, D); `scale_trils` (K, D, D), lower
    triangular with a positive diagonal.
    """
    K = num_components
    weights = pyro.param("weights", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    locs = pyro.param("locs", lambda: start_locs(x, K))
    scale_trils = pyro.param("scale_trils", lambda: start_scale_trils(x, K), constraint=constraints.lower_cholesky)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=scale_trils[z]), obs=x)
    return z


def start_locs(x: Tensor, num_components: int) -> Tensor:
    """Rows at evenly spaced ranks of the first column: distinct, so components can part."""
    ranks = (torch.arange(num_components) + 0.5) / num_components * len(x)
    return x[x[:, 0].argsort(stable=True)[ranks.long()]]


def start_scale_trils(x: Tensor, num_components: int) -> Tensor:
    """The pooled covariance for every component: wide enough that none starts empty."""
    D = x.shape[-1]
    pooled = torch.linalg.cholesky(x.T.cov().reshape(D, D))
    return pooled.expand(num_components, D, D).clone()


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Old Faithful: duration of an eruption and wait for the next, in minutes, (272, 2)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return (torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64),)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor]:
    """`num` rows drawn at `TRUTH`, (num, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    noise = torch.randn(num, 2, 1, generator=generator, dtype=torch.float64)
    return (TRUTH["locs"][z] + (TRUTH["scale_trils"][z] @ noise).squeeze(-1),)
