"""Arguments put together from several parameters, from one parameter twice, or from a parameter and constants."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.constraints import positive, simplex, unit_interval
from torch import Tensor

from arguments.base import SELECTED, Made, affine, case, f64, opaque, selection
from arguments.parts import COUNTS, GROUPS, X, locs, mixture, scale, weights


@case({"weights": SELECTED, "a": SELECTED, "b": SELECTED, "scale": SELECTED})
def stacked_and_tied() -> Made:
    """Three components, of which the first and the last have the same location."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        a, b = pyro.param("a", f64(-0.8)), pyro.param("b", f64(1.9))
        return dist.Normal(torch.stack([a, b, a])[z], scale())

    start = f64([0.25, 0.35, 0.4])
    return mixture(emission, prior=lambda: dist.Categorical(pyro.param("weights", start, constraint=simplex)))


@case({"weights": SELECTED, "low": SELECTED, "high": SELECTED, "scale": SELECTED})
def concatenated() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        low, high = pyro.param("low", f64([-0.8])), pyro.param("high", f64([1.1, 2.9]))
        return dist.Normal(torch.cat([low, high])[z], scale())

    start = f64([0.4, 0.35, 0.25])
    return mixture(emission, prior=lambda: dist.Categorical(pyro.param("weights", start, constraint=simplex)))


@case({"weights": SELECTED, "shift": SELECTED, "scale": SELECTED})
def first_at_zero() -> Made:
    """One element is the constant zero, which a parameter of zero would be taken for."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        shift = pyro.param("shift", f64([1.3]))
        return dist.Normal(torch.cat([torch.zeros(1).to(shift), shift])[z], scale())

    return mixture(emission)


@case({"weights": SELECTED, "theta": SELECTED, "scale": SELECTED})
def shared_by_two_sites() -> Made:
    """Two observed sites of one family: their statistics add up, in proportion to their precisions."""

    def model(x: Tensor, y: Tensor) -> None:
        theta = pyro.param("theta", f64([-0.8, 1.9]))
        width = scale()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights()))
            pyro.sample("x", dist.Normal(theta[z], width), obs=x)
            pyro.sample("y", dist.Normal(theta.flip(0)[1 - z], width), obs=y)

    return model, (X, 0.8 * X + torch.sin(4.1 * X)), {}


@case({"table": SELECTED, "locs": SELECTED})
def shared_by_latents() -> Made:
    """One table serves two latents, of which the second depends on the first, and one set of locations both."""

    def model(x: Tensor, y: Tensor) -> None:
        table = pyro.param("table", f64([[0.35, 0.65], [0.7, 0.3]]), constraint=simplex)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(table[0]))
            b = pyro.sample("b", dist.Categorical(table[a]))
            pyro.sample("x", dist.Normal(locs()[a], f64(0.8)), obs=x)
            pyro.sample("y", dist.Normal(locs()[b], f64(1.1)), obs=y)

    return model, (X, 0.8 * X + torch.sin(4.1 * X)), {}


@case(
    {
        "weights": SELECTED,
        "theta": (selection(exact=None, argument="loc"), selection(exact=None, argument="rate")),
    }
)
def shared_by_two_families() -> Made:
    """A location here, a rate there: sufficient statistics exist, a closed form does not."""

    def model(x: Tensor, counts: Tensor) -> None:
        theta = pyro.param("theta", f64([2.6, 5.2]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights()))
            pyro.sample("x", dist.Normal(theta[z], f64(2.1)), obs=x)
            pyro.sample("counts", dist.Poisson(theta[z]), obs=counts)

    return model, (COUNTS.flip(0) + 0.3 * X[:16], COUNTS), {}


@case(
    {
        "weights": SELECTED,
        "theta": (selection(exact=None, argument="loc"), selection(exact=None, argument="scale")),
    }
)
def location_is_scale() -> Made:
    """The standard deviation grows with the mean: two arguments of one site are the same parameter."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        theta = pyro.param("theta", f64([1.7, 4.9]), constraint=positive)
        return dist.Normal(theta[z], theta[z])

    return mixture(emission, X + 3.4)


@case({"p": (selection(exact=None, argument="probs"), affine(optional=True)), "locs": SELECTED})
def weight_is_probability() -> Made:
    """The weight of the second component is also how often it says yes; the first says yes with what is left."""

    def model(x: Tensor, answers: Tensor) -> None:
        p = pyro.param("p", f64([0.3, 0.7]), constraint=simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(p))
            pyro.sample("x", dist.Normal(locs()[z], f64(0.9)), obs=x)
            pyro.sample("answers", dist.Bernoulli(p[z]), obs=answers)

    return model, (X, (GROUPS > 0).to(X)), {}


@case({"weights": SELECTED, "locs": (selection(exact=None), opaque(same=True, exact=None, argument="log_factor"))})
def penalised() -> Made:
    """A closed form that sees the observations only would forget the penalty."""

    def model(x: Tensor) -> None:
        table = locs()
        pyro.factor("ridge", -1.5 * table.square().sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights()))
            pyro.sample("x", dist.Normal(table[z], f64(0.9)), obs=x)

    return model, (X,), {}


@case({"weights": SELECTED, "locs": SELECTED, "scale": SELECTED})
def by_deterministic() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.deterministic("mean", locs()[z]), pyro.deterministic("width", scale()))

    return mixture(emission)


@case({"weights": SELECTED, "locs": SELECTED, "scale": SELECTED})
def half_counted() -> Made:
    made, args, kwargs = mixture(lambda z: dist.Normal(locs()[z], scale()))
    return poutine.scale(made, scale=0.5), args, kwargs


@case({"p": affine(), "locs": SELECTED})
def complement() -> Made:
    """Two weights from one probability, as ``p`` and ``1 - p``."""

    def prior() -> dist.TorchDistribution:
        p = pyro.param("p", f64(0.6), constraint=unit_interval)
        return dist.Categorical(torch.stack([p, 1 - p]))

    return mixture(lambda z: dist.Normal(locs()[z], f64(0.9)), prior=prior)


@case({"weights": affine(), "locs": SELECTED})
def smoothed() -> Made:
    """No component may vanish: weights are mixed with uniform ones."""
    return mixture(
        lambda z: dist.Normal(locs()[z], f64(0.9)), prior=lambda: dist.Categorical(probs=0.9 * weights() + 0.05)
    )
