"""Logits and rates that are weighted sums of parameters, under the family's link or without one."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive
from torch import Tensor

from arguments.base import SELECTED, Made, affine, case, f64
from arguments.parts import COUNTS, FEATURES, X, locs, mixture, scale
from arguments.regressions import Y

YES = (Y + 0.4 * torch.sin(13.7 * X) > 0.3).to(X)
TALLY = f64([0, 2, 1, 3, 1, 0, 4, 2, 1, 6, 3, 0, 5, 2, 7, 1, 9, 4])
TIMES = 0.4 + 0.13 * torch.arange(16).to(X)


def _beta() -> Tensor:
    return pyro.param("beta", f64([[-0.6, 0.3], [1.1, 0.9]]))


def _logistic(form: Callable[[Tensor, Tensor], dist.TorchDistribution]) -> Made:
    return mixture(form, YES, FEATURES, prior=lambda _: dist.Categorical(f64([0.45, 0.55])))


@case({"beta": affine("sigmoid")})
def logistic_each() -> Made:
    return _logistic(lambda z, x: dist.Bernoulli(logits=(x * _beta()[z]).sum(-1)))


@case({"beta": affine("sigmoid")})
def logistic_by_sigmoid() -> Made:
    return _logistic(lambda z, x: dist.Bernoulli(torch.sigmoid((x * _beta()[z]).sum(-1))))


@case({"gate": affine("softmax", same=False), "locs": SELECTED, "scale": SELECTED})
def gated() -> Made:
    """Mixture weights by softmax regression on the data, redundant by a vector of coefficients."""

    def prior(x: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=x @ pyro.param("gate", f64([[0.2, -0.1], [-0.3, 0.4]])))

    return mixture(lambda z, _: dist.Normal(locs()[z], scale()), X, FEATURES, prior=prior)


@case({"weights": SELECTED, "beta": affine("exp")})
def poisson_each() -> Made:
    return mixture(lambda z, x: dist.Poisson((x * _beta()[z]).sum(-1).exp()), TALLY, FEATURES)


@case({"weights": SELECTED, "log_rates": affine("exp")})
def poisson_with_log_offset() -> Made:
    def emission(z: Tensor, times: Tensor) -> dist.TorchDistribution:
        return dist.Poisson((pyro.param("log_rates", f64([0.3, 1.6]))[z] + times.log()).exp())

    return mixture(emission, COUNTS, TIMES)


@case({"weights": SELECTED, "rates": affine()})
def exposure() -> Made:
    """Counts over intervals of known length: the rate is total count over total time."""

    def emission(z: Tensor, times: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(times * pyro.param("rates", f64([1.2, 4.6]), constraint=positive)[z])

    return mixture(emission, COUNTS, TIMES)


@case({"weights": SELECTED, "rates": affine()})
def background() -> Made:
    """A known rate on top of the unknown one."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(0.5 + pyro.param("rates", f64([1.2, 4.6]), constraint=positive)[z])

    return mixture(emission, COUNTS)
