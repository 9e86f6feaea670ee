"""A mixture and an autoencoder as a script makes them anew, and their fits."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.constraints import positive, simplex

from pyro_em import EM, FitResult, fit

__all__ = ["ADAM", "X", "amortised", "fitted", "mixture"]

X = torch.tensor([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4, 2.6, 3.1], dtype=torch.float64)
ADAM = partial(torch.optim.Adam, lr=0.05)


def mixture(x: Tensor, labels: dict[str, Any] | None = None, *, components: int = 2) -> None:
    weights = pyro.param("weights", torch.ones(components) / components, constraint=simplex)
    locs = pyro.param("locs", torch.linspace(-1.0, 1.5, components))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def fitted(model: Any = mixture, *args: Any, strategy: Any = None, **options: Any) -> FitResult:
    args = args or (X,)
    return fit(model, *args, strategy=strategy or EM(tol=1e-6), seed=0, progress=False, **options)


def amortised(seed: int = 0) -> tuple[Any, Any]:
    """A model and a guide of one network, with running statistics, as a script makes them anew."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))

    def model(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * c, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        loc, log_scale = net(x[:, None]).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Normal(loc, log_scale.exp()))

    guide.net = net  # type: ignore[attr-defined]
    return model, guide
