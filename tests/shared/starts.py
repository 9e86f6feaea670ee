"""Models whose own start EM does not leave, their data, and fits of them."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval

from pyro_em import EM, fit

__all__ = [
    "TRUE",
    "answers",
    "chains",
    "classes",
    "clusters",
    "counts",
    "f64",
    "gated",
    "mixture",
    "network",
    "poissons",
    "run",
    "sequences",
    "starts_of",
]

f64 = partial(torch.tensor, dtype=torch.float64)
TRUE = f64([-6.0, 0.0, 6.0, 12.0])


def clusters(num=30, dims=None):
    """Four clusters of spread 1/2, six apart."""
    generator = torch.Generator().manual_seed(1)
    shape = (4, num) if dims is None else (4, num, dims)
    centres = TRUE.reshape(-1, *[1] * (len(shape) - 1))
    return (centres + 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).flatten(0, 1)


def mixture(x, num=4):
    """Starts with all but one component in the same place, which EM by itself does not leave."""
    weights = pyro.param("weights", torch.full((num,), 1 / num), constraint=simplex)
    locs = pyro.param("locs", torch.full((num,), 20.0) + 0.1 * torch.arange(num))
    scale = pyro.param("scale", f64(3.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def poissons(x):
    weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=simplex)
    rates = pyro.param("rates", f64([2.0, 2.1, 2.2]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def classes(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    probs = pyro.param("probs", torch.full((2, x.shape[1]), 0.5), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)


def chains(x):
    """Sequences (N, T) of a hidden Markov model."""
    init = pyro.param("init", f64([0.5, 0.5]), constraint=simplex)
    trans = pyro.param("trans", f64([[0.6, 0.4], [0.4, 0.6]]), constraint=simplex)
    locs = pyro.param("locs", f64([0.1, 0.2]))
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


def gated(net, locs=(0.4, 0.5), scale=2.0):
    """Mixing weights from a network: no closed form reaches its parameters."""

    def model(x):
        pyro.module("net", net)
        means = pyro.param("locs", f64(locs))
        spread = pyro.param("scale", f64(scale), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=net(x.unsqueeze(-1))))
            pyro.sample("x", dist.Normal(means[z], spread), obs=x)

    return model


def network():
    return torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))


def counts():
    generator = torch.Generator().manual_seed(3)
    return torch.poisson(f64([1.0, 8.0, 25.0]).repeat_interleave(30), generator=generator)


def answers():
    """Two kinds of respondents to six questions."""
    generator = torch.Generator().manual_seed(4)
    probs = f64([[0.9, 0.8, 0.9, 0.1, 0.2, 0.1], [0.1, 0.3, 0.2, 0.8, 0.9, 0.9]]).repeat_interleave(40, 0)
    return torch.bernoulli(probs, generator=generator)


def sequences():
    generator = torch.Generator().manual_seed(5)
    z = (torch.rand(25, 1, generator=generator) < 0.5).expand(25, 5) ^ (torch.rand(25, 5, generator=generator) < 0.1)
    return torch.where(z, 4.0, -4.0) + torch.randn(25, 5, generator=generator, dtype=torch.float64)


def run(model, *args, seed=0, init=None, callbacks=(), **options):
    return fit(model, *args, strategy=EM(**options), seed=seed, init=init, callbacks=callbacks, progress=False)


def starts_of(result):
    """The objective where each restart began."""
    return result.history[result.history.step == 0].groupby("restart").objective.first()
