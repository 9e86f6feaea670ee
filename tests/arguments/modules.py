"""Parameters that belong to modules: attributes, tied attributes, layers and networks."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from arguments.base import SELECTED, Made, affine, case, either, f64, opaque, selection
from arguments.parts import FEATURES, PAIRS, X, locs, mixture, scale, weights
from arguments.regressions import Y


def _irregular(module: nn.Module) -> nn.Module:
    """Overwrite a module's random initial values, so that it is the same at each call."""
    module = module.double()
    for i, p in enumerate(module.parameters()):
        steps = torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape)
        p.data = 0.6 * torch.sin(1.7 * steps + 0.9 * i + 0.4)
    return module


@case({"weights": SELECTED, "emission.locs": SELECTED, "emission.scale": SELECTED})
def attributes() -> Made:
    class Emission(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.locs = PyroParam(f64([-0.8, 1.9]))
            self.scale = PyroParam(f64(1.2), constraint=positive)

        def forward(self, z: Tensor) -> dist.TorchDistribution:
            return dist.Normal(self.locs[z], self.scale)

    class Mixture(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.weights = PyroParam(f64([0.6, 0.4]), constraint=simplex)
            self.emission = Emission()

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(self.weights))
                pyro.sample("x", self.emission(z), obs=x)

    return Mixture(), (X,), {}


@case({"weights": SELECTED, "low": SELECTED, "high": selection(optional=True), "scale": SELECTED})
def tied_attributes() -> Made:
    """Two attributes are one ``torch.nn.Parameter``: one parameter of two names."""

    class Mixture(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.weights = PyroParam(f64([0.3, 0.5, 0.2]), constraint=simplex)
            self.low = nn.Parameter(f64(-0.8))
            self.high = self.low
            self.scale = PyroParam(f64(1.2), constraint=positive)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(self.weights))
                table = torch.stack([self.low, f64(1.9), self.high])
                pyro.sample("x", dist.Normal(table[z], self.scale), obs=x)

    return Mixture(), (X,), {}


@case({"weights": SELECTED, "locs": SELECTED, "last.width": SELECTED})
def tied_submodules() -> Made:
    """One module under two names; Pyro calls its parameter by the one given last."""

    class Width(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.width = PyroParam(f64(1.2), constraint=positive)

    class Mixture(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.first = Width()
            self.last = self.first

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(weights()))
                width = torch.stack([self.first.width, self.last.width])[z]
                pyro.sample("x", dist.Normal(locs()[z], width), obs=x)

    return Mixture(), (X,), {}


@case({"weights": SELECTED, "table$$$weight": SELECTED, "scale": SELECTED})
def embedding() -> Made:
    """A layer that looks up rows."""
    table = _irregular(nn.Embedding(2, 2))
    table.weight.data = f64([[-0.9, 0.2], [1.8, 0.6]])

    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.module("table", table)(z), scale()).to_event(1)

    return mixture(emission, PAIRS)


LINE = affine(exact=True)


@case({"weights": SELECTED, "line$$$weight": LINE, "line$$$bias": LINE, "shift": LINE, "scale": SELECTED})
def linear_layer() -> Made:
    line = _irregular(nn.Linear(1, 1))

    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        mean = pyro.module("line", line)(x).squeeze(-1)
        return dist.Normal(mean + pyro.param("shift", f64(1.6)) * z, scale())

    return mixture(emission, Y, FEATURES[:, 1:])


NETWORK = {"net$$$0.weight": opaque(same=True), "net$$$0.bias": opaque(same=True)}


@case({"weights": SELECTED, **NETWORK})
def network() -> Made:
    net = _irregular(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))

    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        means = 1.8 * pyro.module("net", net)(x)
        return dist.Normal(torch.where(z == 1, means[:, 1], means[:, 0]), f64(0.9))

    return mixture(emission, Y, FEATURES)


@case({**NETWORK, "locs": SELECTED, "scale": SELECTED})
def network_of_weights() -> Made:
    """A network decides the component: what comes after keeps its closed form."""
    net = _irregular(nn.Sequential(nn.Linear(2, 1), nn.Tanh()))

    def prior(x: Tensor) -> dist.TorchDistribution:
        logit = 2.5 * pyro.module("net", net)(x)
        return dist.Categorical(logits=torch.cat([torch.zeros_like(logit), logit], -1))

    def emission(z: Tensor, _: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.param("locs", f64([-0.8, 1.9]))[z], scale())

    return mixture(emission, X, FEATURES, prior=prior)


@case({"weights": SELECTED, "offset$$$bias": either("selection", "affine"), "scale": SELECTED})
def plain_module() -> Made:
    """A torch module of the user's own, with a parameter registered by hand."""

    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(f64([-0.8, 1.9]))

        def forward(self, z: Tensor) -> Tensor:
            return self.bias[z]

    offset = Offset()
    return mixture(lambda z: dist.Normal(pyro.module("offset", offset)(z), scale()))
