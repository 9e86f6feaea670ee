"""A Gaussian mixture, one gated by a network, and every way to fit them."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex

from pyro_em import EM, SVI, GradientMStep, RandomDraws, fit
from shared import starts
from shared.starts import f64

__all__ = ["EM_VARIANTS", "FAST", "X", "every_em", "gated", "mixture", "run"]

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
gated = partial(starts.gated, locs=(-1.0, 1.5), scale=1.0)


def mixture(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def run(model, *args, strategy=None, **options):
    return fit(model, *args, strategy=strategy or EM(), progress=False, **options)
