"""Global latents under priors: conjugate ones enter a closed form, others do not; hyperparameters may be parameters."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.constraints import positive
from torch import Tensor

from arguments.base import SELECTED, Made, case, either, f64, linked, selection
from arguments.parts import BITS, COUNTS, SERIES, X, locs, weights

LOCS = f64([-0.8, 1.9])
LOOSE = selection(exact=None)
PART = selection(exact=None, same=False)  # coupled to another parameter by Q, so moved in turn
HYPER = either("selection", "opaque", same=False)  # it reaches a prior only


def _mixture(
    emission: Callable[[], Callable[[Tensor], dist.TorchDistribution]],
    x: Tensor = X,
    prior: Callable[[], Tensor] = weights,
) -> Made:
    """``prior()`` and ``emission()`` sample the global latents; what the latter returns is the emission proper."""

    def model(x: Tensor) -> None:
        probs, emit = prior(), emission()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(probs))
            pyro.sample("x", emit(z), obs=x)

    return model, (x,), {}


def _at(table: Callable[[], Tensor]) -> Callable[[], Callable[[Tensor], dist.TorchDistribution]]:
    def emission() -> Callable[[Tensor], dist.TorchDistribution]:
        loc = table()
        return lambda z: dist.Normal(loc[z], f64(0.9))

    return emission


def _scaled(sample: Callable[[], Tensor]) -> Made:
    """Locations are constants, so that nothing but the scale is coupled to it."""

    def emission() -> Callable[[Tensor], dist.TorchDistribution]:
        width = sample()
        return lambda z: dist.Normal(f64([-0.8, 1.7])[z], width)

    return _mixture(emission)


def _rates(sample: Callable[[], Tensor]) -> Made:
    def emission() -> Callable[[Tensor], dist.TorchDistribution]:
        rates = sample()
        return lambda z: dist.Poisson(rates[z])

    return _mixture(emission, COUNTS)


@case({"weights": SELECTED, "locs": SELECTED}, given={"weights": f64([0.6, 0.4])})
def dirichlet_on_weights() -> Made:
    return _mixture(_at(locs), prior=lambda: pyro.sample("weights", dist.Dirichlet(f64([4.5, 2.0]))))


@case({"weights": SELECTED, "probs": SELECTED}, given={"probs": f64([[0.3, 0.6, 0.7], [0.8, 0.4, 0.5]])})
def beta_on_probs() -> Made:
    def emission() -> Callable[[Tensor], dist.TorchDistribution]:
        probs = pyro.sample("probs", dist.Beta(f64(2.5), f64([3.1, 1.7, 2.2])).expand([2, 3]).to_event(2))
        return lambda z: dist.Bernoulli(probs[z]).to_event(1)

    return _mixture(emission, BITS)


@case({"weights": SELECTED, "rates": SELECTED}, given={"rates": f64([1.2, 4.6])})
def gamma_on_rates() -> Made:
    def sample() -> Tensor:
        with pyro.plate("components", 2):
            return pyro.sample("rates", dist.Gamma(f64(2.6), f64(0.8)))

    return _rates(sample)


@case({"weights": SELECTED, "locs": SELECTED}, given={"locs": LOCS})
def normal_on_locs() -> Made:
    return _mixture(_at(lambda: pyro.sample("locs", dist.Normal(f64([0.5, -0.4]), f64([0.7, 1.4])).to_event(1))))


@case({"weights": SELECTED, "locs": PART, "scale": PART}, maximal=False, given={"locs": LOCS})
def normal_on_locs_with_scale() -> Made:
    """How much the prior pulls depends on the scale: no joint closed form."""

    def emission() -> Callable[[Tensor], dist.TorchDistribution]:
        table = pyro.sample("locs", dist.Normal(f64(0.0), f64(0.8)).expand([2]).to_event(1))
        scale = pyro.param("scale", f64(1.4), constraint=positive)
        return lambda z: dist.Normal(table[z], scale)

    return _mixture(emission)


@case(
    {"weights": SELECTED, "precision": either("linked", "opaque", links=("reciprocal sqrt", "reciprocal", "sqrt"))},
    given={"precision": f64(0.6)},
)
def gamma_on_precision() -> Made:
    return _scaled(lambda: pyro.sample("precision", dist.Gamma(f64(3.5), f64(1.7))).rsqrt())


@case({"weights": SELECTED, "variance": linked("sqrt")}, given={"variance": f64(1.6)})
def inverse_gamma_on_variance() -> Made:
    return _scaled(lambda: pyro.sample("variance", dist.InverseGamma(f64(3.5), f64(1.7))).sqrt())


@case({"weights": SELECTED, "scale": LOOSE}, given={"scale": f64(1.3)})
def half_normal_on_scale() -> Made:
    """Not conjugate: the closed form for the scale does not know this prior."""
    return _scaled(lambda: pyro.sample("scale", dist.HalfNormal(f64(0.6))))


@case({"weights": SELECTED, "rates": LOOSE}, given={"rates": f64([1.2, 4.6])})
def log_normal_on_rates() -> Made:
    return _rates(lambda: pyro.sample("rates", dist.LogNormal(f64([0.2, 1.1]), f64(0.5)).to_event(1)))


@case({"weights": SELECTED, "locs": PART, "centre": HYPER}, maximal=False, given={"locs": LOCS})
def centre_is_a_parameter() -> Made:
    """The prior's location is to be learnt, too; each of the two is the other's closed form."""

    def table() -> Tensor:
        centre = pyro.param("centre", f64(1.5))
        return pyro.sample("locs", dist.Normal(centre, f64(0.8)).expand([2]).to_event(1))

    return _mixture(_at(table))


@case({"weights": SELECTED, "rates": PART, "inverse_scale": HYPER}, maximal=False, given={"rates": f64([1.2, 4.6])})
def inverse_scale_is_a_parameter() -> Made:
    def sample() -> Tensor:
        inverse_scale = pyro.param("inverse_scale", f64(1.3), constraint=positive)
        return pyro.sample("rates", dist.Gamma(f64(2.6), inverse_scale).expand([2]).to_event(1))

    return _rates(sample)


@case({"weights": SELECTED, "locs": SELECTED}, given={"weights": f64([0.6, 0.4]), "locs": LOCS})
def prior_outside_a_scale() -> Made:
    """Data count twice, priors once."""

    def model(x: Tensor) -> None:
        probs = pyro.sample("weights", dist.Dirichlet(f64([4.5, 2.0])))
        with pyro.plate("components", 2):
            table = pyro.sample("locs", dist.Normal(f64(0.3), f64(0.7)))
        with poutine.scale(scale=2.0), pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(probs))
            pyro.sample("x", dist.Normal(table[z], f64(0.9)), obs=x)

    return model, (X,), {}


@case({"trans": SELECTED, "locs": SELECTED}, given={"trans": f64([[0.8, 0.2], [0.35, 0.65]])})
def dirichlet_on_rows() -> Made:
    """A prior for each row of a chain's table; its first state is drawn from the first row."""

    def model(x: Tensor) -> None:
        trans = pyro.sample("trans", dist.Dirichlet(f64([[5.0, 1.5], [1.2, 4.0]])).to_event(1))
        z = torch.tensor(0)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(3)):
                z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs()[z], f64(0.9)), obs=x[:, t])

    return model, (SERIES,), {}
