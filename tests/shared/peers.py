"""A Gaussian mixture, one gated by a network, and every way to fit them."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex

from pyro_em import EM, SVI, GradientMStep, RandomDraws, fit

__all__ = ["EM_VARIANTS", "FAST", "X", "every_em", "f64", "gated", "mixture", "network", "run"]

f64 = partial(torch.tensor, dtype=torch.float64)
X = f64([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4, 2.6, 3.1])
FAST = partial(SVI, optim=partial(torch.optim.Adam, lr=0.05))
EM_VARIANTS = {
    "plain": EM,
    "squarem": partial(EM, accelerate="squarem"),
    "restarts": partial(EM, restarts=3, start=RandomDraws(0.3)),
    "restarts and squarem": partial(EM, restarts=3, accelerate="squarem"),
    "gradient": partial(EM, m_step=GradientMStep()),
    "floor": partial(EM, on_degenerate="floor"),
}
every_em = pytest.mark.parametrize("em", EM_VARIANTS.values(), ids=EM_VARIANTS)


def mixture(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def gated(net):
    """Its mixing weights come from a network, which no closed form reaches."""

    def model(x):
        pyro.module("net", net)
        locs = pyro.param("locs", f64([-1.0, 1.5]))
        scale = pyro.param("scale", f64(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=net(x.unsqueeze(-1))))
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model


def network():
    return torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))


def run(model, *args, strategy=None, **options):
    return fit(model, *args, strategy=strategy or EM(), progress=False, **options)
