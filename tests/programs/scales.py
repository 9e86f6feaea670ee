"""Scales, factors and deterministic sites: terms that are not plain log-densities."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.constraints import simplex
from pyro.ops.indexing import Vindex
from torch import Tensor

from programs.base import Made, f64, program


@program("plate", "scale")
def scaled() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.38, 0.62]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.3, 1.1]))
        with poutine.scale(scale=2.5), pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x)

    return model, (f64([0.7, -0.6, 1.3]),), {}


@program("plate", "scale", "subsample")
def subsampled() -> Made:
    def model(x: Tensor, batch: Tensor) -> None:
        weights = pyro.param("weights", f64([0.38, 0.62]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.3, 1.1]))
        with pyro.plate("data", len(x), subsample=batch) as index:
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x[index])

    return model, (f64([0.7, -0.6, 1.3, 0.2, 2.1, -1.4]),), {"batch": torch.tensor([0, 2, 5])}


@program(
    "plate",
    "scale",
    "subsample",
    "continuous",
    "map",
    given={"weights": f64([0.44, 0.56]), "locs": f64([-0.2, 1.3])},
)
def subsampled_with_priors() -> Made:
    """The priors keep scale one while the minibatch is scaled up."""

    def model(x: Tensor, batch: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(f64([2.0, 3.0])))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(f64(0.0), f64(2.0)))
        with pyro.plate("data", len(x), subsample=batch) as index:
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x[index])

    return model, (f64([0.7, -0.6, 1.3, 0.2, 2.1]),), {"batch": torch.tensor([1, 2, 4])}


@program("plate", "deterministic")
def deterministic_site() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.47, 0.53]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.9, 0.7]))
        spread = pyro.deterministic("spread", locs.max() - locs.min())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            loc = pyro.deterministic("loc", locs[z], event_dim=0)
            pyro.sample("x", dist.Normal(loc, 0.3 * spread), obs=x)

    return model, (f64([0.2, -1.1, 0.9, 0.4]),), {}


@program("plate", "factor")
def factor_on_latent() -> Made:
    """A soft hint about each label: the joint is no longer normalised."""

    def model(x: Tensor, hint: Tensor) -> None:
        weights = pyro.param("weights", f64([0.28, 0.4, 0.32]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.2, 0.3, 1.6]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.factor("hint", Vindex(hint)[..., z])
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x)

    hint = f64([[0.3, -0.8, 0.1], [0.0, 0.9, -0.4], [-0.2, 0.5, 0.7], [1.1, 0.0, -0.6]])
    return model, (f64([-0.5, 0.4, 0.8, 1.9]), hint), {}


@program("plate", "factor")
def factor_on_parameters() -> Made:
    """A penalty on the means, outside the plate and the sum."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.28, 0.72]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.2, 0.6]))
        pyro.factor("ridge", -0.3 * locs.square().sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x)

    return model, (f64([-0.5, 0.4, 0.8, 1.9]),), {}
