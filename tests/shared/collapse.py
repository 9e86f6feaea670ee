"""Mixtures that collapse on their data, and what it means that a fit did not."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import lower_cholesky, positive, simplex

from pyro_em import EM, fit

f64 = partial(torch.tensor, dtype=torch.float64)
FLOOR = 1e-6  # of the data's variance
X = f64([0.0, 0.0, 4.1, 4.6, 5.0, 5.3, 5.9, 6.4, 6.6, 7.2, 3.1, 4.9])
XY = torch.stack([X, f64([0.0, 0.0, 1.2, -0.7, 0.4, 2.0, 1.1, 0.3, -1.2, 0.8, 0.2, 1.6])], -1)
accelerated = pytest.mark.parametrize("accelerate", [None, "squarem"])


def normals(x, num=2):
    weights = pyro.param("weights", torch.full((num,), 1 / num), constraint=simplex)
    locs = pyro.param("locs", 5.0 * torch.arange(num))
    scales = pyro.param("scales", torch.ones(num), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def shared(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([0.0, 5.0]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def fulls(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([[0.0, 0.0], [5.0, 1.0]]))
    trils = pyro.param("trils", torch.eye(2).repeat(2, 1, 1), constraint=lower_cholesky)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=trils[z]), obs=x)


def shared_full(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([[0.0, 0.0], [5.0, 1.0]]))
    tril = pyro.param("tril", torch.eye(2), constraint=lower_cholesky)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=tril), obs=x)


def chain(x):
    """A hidden Markov model that visits its first state at two equal points."""
    init = pyro.param("init", f64([0.5, 0.5]), constraint=simplex)
    trans = pyro.param("trans", f64([[0.5, 0.5], [0.5, 0.5]]), constraint=simplex)
    locs = pyro.param("locs", f64([0.0, 5.0]))
    scales = pyro.param("scales", f64([1.0, 1.0]), constraint=positive)
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], scales[z]), obs=x[t])


MODELS = {"normals": (normals, X, "scales"), "fulls": (fulls, XY, "trils"), "chain": (chain, X[:7], "scales")}
each_model = pytest.mark.parametrize(("model", "x", "param"), MODELS.values(), ids=MODELS)
# All data lie on as many points as there are components, so that what all share has nothing left to explain.
SHARED = {
    "scale": (shared, f64([0.0, 0.0, 0.0, 5.0, 5.0]), "scale"),
    "tril": (shared_full, f64([[0.0, 0.0], [0.0, 0.0], [5.0, 1.0], [5.0, 1.0], [5.0, 1.0]]), "tril"),
}
each_shared = pytest.mark.parametrize(("model", "x", "param"), SHARED.values(), ids=SHARED)


def run(model, x, init=None, seed=0, **options):
    return fit(model, x, strategy=EM(**options), init=init, seed=seed, progress=False)


def is_finite(result):
    return all(torch.isfinite(v).all() for v in result.params.values())


def climbs(result):
    gains = result.history.objective.diff().dropna()
    return gains.min() > -1e-9 * (1 + result.history.objective.abs().max())
