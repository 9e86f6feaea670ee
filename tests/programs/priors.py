"""Global continuous latents, to be point-estimated."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive
from torch import Tensor

from programs.base import Made, f64, program


@program(
    "plate",
    "continuous",
    "map",
    given={"weights": f64([0.35, 0.65]), "locs": f64([-0.4, 1.6]), "scale": f64(0.85)},
)
def bayesian_mixture() -> Made:
    """The mixture of Pyro's tutorial: a Dirichlet, a plate of components, a shared scale."""

    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(f64([1.5, 2.0])))
        scale = pyro.sample("scale", dist.LogNormal(f64(0.0), f64(2.0)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(f64(0.0), f64(10.0)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model, (f64([-0.9, 0.3, 1.2, 2.1, 1.4]),), {}


@program(
    "markov",
    "continuous",
    "map",
    given={"trans": f64([[0.7, 0.3], [0.2, 0.8]]), "locs": f64([-0.5, 1.1])},
)
def bayesian_chain() -> Made:
    def model(x: Tensor) -> None:
        trans = pyro.sample("trans", dist.Dirichlet(f64([[9.0, 1.5], [1.2, 7.0]])).to_event(1))
        locs = pyro.sample("locs", dist.Normal(f64([-1.0, 1.0]), f64(2.0)).to_event(1))
        scale = pyro.param("scale", f64(0.8), constraint=positive)
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=x[t])

    return model, (f64([-0.6, 0.9, 1.4, 0.2, -0.3]),), {}
