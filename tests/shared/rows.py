"""Models whose rows are weighted or come in batches."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval

__all__ = ["bayesian", "chains", "counts", "f64", "gated", "mixture", "regimes", "regressions"]

f64 = partial(torch.tensor, dtype=torch.float64)


def mixture(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    scales = pyro.param("scales", f64([1.0, 1.2]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def regressions(x, y):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    slopes, biases = pyro.param("slopes", f64([0.8, -0.5])), pyro.param("biases", f64([0.1, 0.9]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(slopes[z] * x + biases[z], scale), obs=y)


def chains(x):
    """Sequences (N, T): a weight counts a whole sequence."""
    init = pyro.param("init", f64([0.4, 0.6]), constraint=simplex)
    trans = pyro.param("trans", f64([[0.7, 0.3], [0.4, 0.6]]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.0]))
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


def regimes(x):
    """One latent for all data chooses the mixing weights of a latent for each."""
    regime = pyro.sample("regime", dist.Bernoulli(pyro.param("p", f64(0.3), constraint=unit_interval)))
    table = pyro.param("table", f64([[0.3, 0.7], [0.6, 0.4]]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(table[regime.long()]))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def gated(x):
    """No closed form reaches the parameters of the gate."""
    hidden, out = pyro.param("hidden", f64([0.5, -1.0])), pyro.param("out", f64([[0.3, -0.2], [-0.3, 0.4]]))
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=torch.tanh(x.unsqueeze(-1) * hidden) @ out.mT))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def bayesian(x):
    """Priors are not data: a weight does not count them twice."""
    weights = pyro.sample("weights", dist.Dirichlet(f64([3.0, 2.0])))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 0.7), obs=x)


def counts(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    rates = pyro.param("rates", f64([1.0, 4.0]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)
