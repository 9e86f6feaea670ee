"""Models with errors known or differentiated by hand, their data, and tight fits."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.constraints import positive, simplex, unit_interval

from pyro_em import EM, FitResult, fit

__all__ = ["COIN", "THREE", "coin", "draws", "fitted", "gaussian", "mixture"]

TIGHT = EM(tol=1e-10)


def fitted(model: Any, *args: Any, strategy: Any = TIGHT, **options: Any) -> FitResult:
    return fit(model, *args, strategy=strategy, seed=0, progress=False, **options)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def coin(x: Tensor) -> None:
    p = pyro.param("p", torch.tensor(0.4), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def mixture(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.3, 0.3, 0.4]), constraint=simplex)
    locs = pyro.param("locs", torch.tensor([-2.0, 0.5, 3.0]))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


THREE = torch.cat([draws(60) - 3.0, draws(80, seed=1), draws(50, seed=2) + 4.0])
COIN = torch.tensor([1.0] * 13 + [0.0] * 27, dtype=torch.float64)
