"""Models and guides whose gap is known, and their fits at the start."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.constraints import positive, simplex

from pyro_em import SVI, FitResult, fit

__all__ = ["X", "at_start", "class_guide", "factor_analysis", "linear_guide", "mixture"]

X = torch.tensor([-2.1, -1.7, 0.2, 0.9, 1.6, 2.4], dtype=torch.float64)


def at_start(model: Any, guide: Any, *args: Any) -> FitResult:
    return fit(model, *args, strategy=SVI(guide, max_steps=0), seed=0, progress=False)


def mixture(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.5])[z], 0.8), obs=x)


def class_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.6))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=torch.stack([-slope * x, slope * x], -1)))


def factor_analysis(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(1.3), constraint=positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * c, 0.5), obs=x)


def linear_guide(x: Tensor) -> None:
    gain = pyro.param("gain", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Normal(gain * x, 0.3))
