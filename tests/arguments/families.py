"""Plain selections in families that have an exact M-step, by formula or by Newton's method, and in one without."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval
from torch import Tensor

from arguments.base import SELECTED, Made, case, either, f64, selection
from arguments.parts import BITS, COUNTS, GROUPS, SERIES, X, mixture

NEWTON = selection(exact=None)
UNKNOWN = either("selection", "opaque")
TOTALS = (COUNTS + 2 + (torch.arange(16) % 3)).to(X)
SHARES = torch.sigmoid(0.8 * X + 0.3 * torch.sin(5.0 * X))


def _positive(name: str, start: list[float]) -> Tensor:
    return pyro.param(name, f64(start), constraint=positive)


@case({"weights": SELECTED, "locs": SELECTED, "scale": SELECTED})
def log_normal() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.LogNormal(pyro.param("locs", f64([-0.8, 1.9]))[z], _positive("scale", [1.2]))

    return mixture(emission, X.exp())


@case({"weights": SELECTED, "rates": SELECTED})
def exponential() -> Made:
    return mixture(lambda z: dist.Exponential(_positive("rates", [0.9, 0.15])[z]), COUNTS + 0.3)


@case({"weights": SELECTED, "probs": SELECTED})
def geometric() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Geometric(pyro.param("probs", f64([0.4, 0.15]), constraint=unit_interval)[z])

    return mixture(emission, COUNTS)


@case({"weights": SELECTED, "probs": SELECTED})
def binomial() -> Made:
    """Totals differ from datum to datum."""

    def emission(z: Tensor, totals: Tensor) -> dist.TorchDistribution:
        return dist.Binomial(totals, pyro.param("probs", f64([0.3, 0.8]), constraint=unit_interval)[z])

    return mixture(emission, COUNTS, TOTALS)


@case({"weights": SELECTED, "probs": SELECTED})
def multinomial() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        table = pyro.param("probs", f64([[0.4, 0.3, 0.3], [0.2, 0.3, 0.5]]), constraint=simplex)
        return dist.Multinomial(4, table[z])

    ones = torch.nn.functional.one_hot(torch.stack([GROUPS, GROUPS.roll(1), GROUPS.roll(5), GROUPS * 0 + 2]), 3)
    return mixture(emission, ones.sum(0).to(X))


@case({"weights": SELECTED, "probs": SELECTED})
def one_hot_latent() -> Made:
    """The latent is a vector, and picks a row by multiplication."""

    def model(x: Tensor) -> None:
        start = f64([[0.3, 0.6, 0.7], [0.8, 0.4, 0.5]])
        weights = pyro.param("weights", f64([0.6, 0.4]), constraint=simplex)
        probs = pyro.param("probs", start, constraint=unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(weights))
            pyro.sample("x", dist.Bernoulli(probs[z.argmax(-1)]).to_event(1), obs=x)

    return model, (BITS,), {}


@case({"p": SELECTED, "locs": SELECTED})
def bernoulli_latent() -> Made:
    def model(x: Tensor) -> None:
        p = pyro.param("p", f64(0.4), constraint=unit_interval)
        locs = pyro.param("locs", f64([-0.8, 1.9]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(locs[z.long()], f64(0.9)), obs=x)

    return model, (X,), {}


@case({"weights": SELECTED, "concentration": NEWTON, "rate": NEWTON})
def gamma() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Gamma(_positive("concentration", [1.9, 3.4])[z], _positive("rate", [1.8, 0.7])[z])

    return mixture(emission, (0.5 * X).exp() * 1.5 + 0.1)


@case({"weights": SELECTED, "a": NEWTON, "b": NEWTON})
def beta() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Beta(_positive("a", [1.4, 3.5])[z], _positive("b", [3.1, 1.6])[z])

    return mixture(emission, SHARES)


@case({"weights": SELECTED, "concentration": NEWTON})
def dirichlet() -> Made:
    start = [[1.5, 2.2, 1.1], [3.1, 1.3, 2.4]]

    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Dirichlet(_positive("concentration", start)[z])

    return mixture(emission, torch.softmax(torch.stack([X, 0.4 * X.flip(0), torch.cos(3.0 * X)], -1), -1))


@case({"weights": SELECTED, "total": NEWTON, "probs": NEWTON})
def negative_binomial() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        probs = pyro.param("probs", f64([0.3, 0.5]), constraint=unit_interval)
        return dist.NegativeBinomial(_positive("total", [4.0]), probs[z])

    return mixture(emission, torch.cat([COUNTS, COUNTS[::3] + 9]))


@case({"weights": SELECTED, "locs": NEWTON, "concentration": NEWTON})
def von_mises() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.VonMises(pyro.param("locs", f64([-0.8, 1.9]))[z], _positive("concentration", [0.7]))

    return mixture(emission, X)


@case({"weights": SELECTED, "locs": UNKNOWN, "scale": UNKNOWN})
def gumbel() -> Made:
    """A family without sufficient statistics, of whose arguments the fit need not know."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Gumbel(pyro.param("locs", f64([-1.2, 1.1]))[z], _positive("scale", [1.3]))

    return mixture(emission, SERIES.flatten())
