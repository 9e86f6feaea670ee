"""Gaussian mixtures whose covariances have something in common: mclust's EII to VVV.

    z_n            ~ Categorical(weights)                    n = 1 ... N
    x_n | z_n = k  ~ MultivariateNormal(locs[k], S_k)

    EII  S_k = scale^2 I          VII  S_k = scales[k]^2 I
    EEI  S_k = diag(scales)^2     VVI  S_k = diag(scales[k])^2
    EEE  S_k = L L'               VVV  S_k = L[k] L[k]'       L = scale_tril, L[k] = scale_trils[k]

The letters say whether volume, shape and orientation are equal, variable, or the identity. Where
the components share their spread none can collapse, and the likelihood is bounded. Fisher's iris
with three components: -401.8022 (EII) to -180.1855 (VVV).

Source: Banfield & Raftery (1993), Biometrics 49, 803-821; Celeux & Govaert (1995), Pattern
Recognition 28, 781-793, table 1. Data: Fisher (1936), see `data/README.md`.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "eee", "eei", "eii", "load", "make", "model", "simulate", "vii", "vvi", "vvv"]

DATA = Path(__file__).parent / "data" / "iris.csv"

# What `simulate` draws from: structure EEE.
TRUTH = {
    "weights": torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64),
    "locs": torch.tensor([[-2.0, 0.0], [1.5, -1.0], [2.0, 2.5]], dtype=torch.float64),
    "scale_tril": torch.tensor([[0.8, 0.0], [0.5, 0.6]], dtype=torch.float64),
}

Components = Callable[[Tensor], dist.TorchDistribution]
Structure = Callable[[Tensor, Tensor], Components]


def eii(x: Tensor, locs: Tensor) -> Components:
    """One variance for all features and components."""
    scale = pyro.param("scale", lambda: x.std(0).mean(), constraint=constraints.positive)
    return lambda z: dist.Normal(locs[z], scale).to_event(1)


def vii(x: Tensor, locs: Tensor) -> Components:
    """One variance a component."""
    scales = pyro.param("scales", lambda: x.std(0).mean().expand(len(locs)).clone(), constraint=constraints.positive)
    return lambda z: dist.Normal(locs[z], scales[z].unsqueeze(-1)).to_event(1)


def eei(x: Tensor, locs: Tensor) -> Components:
    """One variance a feature."""
    scales = pyro.param("scales", lambda: x.std(0), constraint=constraints.positive)
    return lambda z: dist.Normal(locs[z], scales).to_event(1)


def vvi(x: Tensor, locs: Tensor) -> Components:
    """One variance a feature and component."""
    scales = pyro.param("scales", lambda: x.std(0).expand_as(locs).clone(), constraint=constraints.positive)
    return lambda z: dist.Normal(locs[z], scales[z]).to_event(1)


def eee(x: Tensor, locs: Tensor) -> Components:
    """One full covariance for all components."""
    scale_tril = pyro.param("scale_tril", lambda: start_scale_tril(x), constraint=constraints.lower_cholesky)
    return lambda z: dist.MultivariateNormal(locs[z], scale_tril=scale_tril)


def vvv(x: Tensor, locs: Tensor) -> Components:
    """One full covariance a component."""
    start = start_scale_tril(x).expand(len(locs), -1, -1).clone()
    scale_trils = pyro.param("scale_trils", start, constraint=constraints.lower_cholesky)
    return lambda z: dist.MultivariateNormal(locs[z], scale_tril=scale_trils[z])


def model(x: Tensor, num_components: int = 3, structure: Structure = eee) -> Tensor:
    """Draw the rows of `x` (N, D) from a mixture; return their components, integers of shape (N,).

    Parameters: `weights` (K,) on the simplex; `locs` (K, D); `scale` (), `scales` (K,), (D,) or
    (K, D), positive, `scale_tril` (D, D) or `scale_trils` (K, D, D), as the structure has it.
    """
    K = num_components
    weights = pyro.param("weights", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    locs = pyro.param("locs", lambda: start_locs(x, K))
    components = structure(x, locs)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", components(z), obs=x)
    return z


def start_locs(x: Tensor, num_components: int) -> Tensor:
    """Rows at evenly spaced ranks along the first principal axis of standardised data."""
    standard = (x - x.mean(0)) / x.std(0)
    axis = torch.linalg.svd(standard, full_matrices=False).Vh[0]
    ranks = (torch.arange(num_components) + 0.5) / num_components * len(x)
    return x[(standard @ axis).argsort(stable=True)[ranks.long()]]


def start_scale_tril(x: Tensor) -> Tensor:
    """The covariance of all data, factored: wide enough that no component starts empty."""
    return torch.linalg.cholesky(x.T.cov().reshape(x.shape[-1], -1))


def make(structure: Structure = eee) -> tuple[Callable[..., Tensor], None]:
    """The model with one of the structures, and no guide: `z` can be summed out."""
    return partial(model, structure=structure), None


def load() -> tuple[Tensor]:
    """Lengths and widths of sepals and petals of 150 irises in cm, (150, 4)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return (torch.tensor([[float(value) for value in row[:4]] for row in rows], dtype=torch.float64),)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor]:
    """`num` rows drawn at `TRUTH`, (num, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    noise = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    return (TRUTH["locs"][z] + noise @ TRUTH["scale_tril"].T,)
