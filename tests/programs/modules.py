"""Networks in the arguments, and models that are modules."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.nn.functional import one_hot

from programs.base import Made, f64, program


def _set_irregular(module: nn.Module) -> nn.Module:
    """Overwrite a module's random initial weights, so that it is the same at each call."""
    for i, p in enumerate(module.parameters()):
        steps = torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape)
        p.data = torch.sin(1.7 * steps + 0.9 * i + 0.4)
    return module


@program("plate", "network")
def network_likelihood() -> Made:
    net = _set_irregular(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double())

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        weights = pyro.param("weights", f64([0.24, 0.45, 0.31]), constraint=simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            loc = net(one_hot(z, 3).double())
            pyro.sample("x", dist.Normal(loc, f64(0.7)).to_event(1), obs=x)

    return model, (f64([[0.4, -0.3], [1.1, 0.8], [-0.7, 0.2], [0.1, 1.5]]),), {}


@program("plate", "network")
def mixture_of_experts() -> Made:
    """The prior of the latent is a network of covariates, its children are closed form."""
    gate = _set_irregular(nn.Linear(2, 3).double())

    def model(features: Tensor, y: Tensor) -> None:
        pyro.module("gate", gate)
        slopes = pyro.param("slopes", f64([[0.7, -0.4], [-1.2, 0.9], [0.1, 0.5]]))
        scale = pyro.param("scale", f64(0.8), constraint=positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(logits=gate(features)))
            pyro.sample("y", dist.Normal((slopes[z] * features).sum(-1), scale), obs=y)

    features = f64([[0.1, 1.2], [0.8, -0.5], [-1.1, 0.3], [1.5, 0.9]])
    return model, (features, f64([-0.1, 1.2, 0.9, -0.6])), {}


@program("plate", "module")
def module_with_params() -> Made:
    class Mixture(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.weights = PyroParam(f64([0.6, 0.4]), constraint=simplex)
            self.locs = PyroParam(f64([-0.4, 1.3]))
            self.scale = PyroParam(f64(0.9), constraint=positive)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(self.weights))
                pyro.sample("x", dist.Normal(self.locs[z], self.scale), obs=x)

    return Mixture(), (f64([0.2, -0.7, 1.8, 1.1]),), {}


@program(
    "plate",
    "module",
    "network",
    "continuous",
    "map",
    given={"linear.weight": f64([[0.6, -0.9]]), "linear.bias": f64([0.2])},
)
def module_with_priors() -> Made:
    """Regression with outliers; the weights of a torch Linear have priors."""

    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1, dtype=torch.float64)
            self.linear.weight = PyroSample(dist.Normal(f64(0.0), f64(1.5)).expand([1, 2]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(f64([0.0]), f64([3.0])).to_event(1))
            self.outliers = PyroParam(f64(0.23), constraint=unit_interval)

        def forward(self, features: Tensor, y: Tensor) -> None:
            mean = self.linear(features).squeeze(-1)
            with pyro.plate("data", len(y)):
                odd = pyro.sample("odd", dist.Bernoulli(self.outliers))
                pyro.sample("y", dist.Normal(mean, 0.4 + 2.5 * odd), obs=y)

    features = f64([[0.1, 1.2], [0.8, -0.5], [-1.1, 0.3], [1.5, 0.9]])
    return Regression(), (features, f64([-0.7, 1.3, 2.8, 0.4])), {}
