"""Parameters under a function that a closed form can undo."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex
from torch import Tensor
from torch.nn.functional import softplus

from arguments.base import SELECTED, Made, case, either, f64, linked
from arguments.parts import BITS, COUNTS, X, locs, mixture, weights

BOTH = {"weights": SELECTED, "locs": SELECTED}
# Redundant: one step finds the right probabilities, by logits or masses that are right up to a constant.
SOFTMAX = linked("softmax", same=False)
NORMALISE = linked("normalise", same=False)


def _prior(distribution: Callable[[], dist.TorchDistribution]) -> Made:
    return mixture(lambda z: dist.Normal(locs()[z], f64(0.9)), prior=distribution)


@case({"logits": SOFTMAX, "locs": SELECTED})
def weights_by_logits() -> Made:
    return _prior(lambda: dist.Categorical(logits=pyro.param("logits", f64([0.3, -0.2]))))


@case({"logits": SOFTMAX, "locs": SELECTED})
def weights_by_softmax() -> Made:
    return _prior(lambda: dist.Categorical(torch.softmax(pyro.param("logits", f64([0.3, -0.2])), -1)))


@case({"logits": SOFTMAX, "locs": SELECTED})
def weights_by_log_softmax() -> Made:
    return _prior(lambda: dist.Categorical(logits=torch.log_softmax(pyro.param("logits", f64([0.3, -0.2])), -1)))


@case({"masses": NORMALISE, "locs": SELECTED})
def weights_by_masses() -> Made:
    """Positive weights that do not sum to one: Categorical normalises them."""
    return _prior(lambda: dist.Categorical(pyro.param("masses", f64([3.1, 1.7]), constraint=positive)))


@case({"masses": NORMALISE, "locs": SELECTED})
def weights_normalised() -> Made:
    def prior() -> dist.TorchDistribution:
        masses = pyro.param("masses", f64([3.1, 1.7]), constraint=positive)
        return dist.Categorical(masses / masses.sum(-1, keepdim=True))

    return _prior(prior)


@case({"weights": either("selection", "linked", links=("log",), exact=True), "locs": SELECTED})
def weights_by_log() -> Made:
    """The logits are logarithms of probabilities: taken together, a selection."""
    return _prior(lambda: dist.Categorical(logits=weights().log()))


@case({"weights": SELECTED, "logits": SOFTMAX})
def rows_by_softmax() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        logits = pyro.param("logits", f64([[0.4, -0.9, 0.2], [-0.3, 0.5, 1.1]]))
        return dist.OneHotCategorical(torch.softmax(logits, -1)[z])

    x = torch.eye(3).to(X)[(COUNTS.long() * 2 + 1) % 3]
    return mixture(emission, x)


@case({"weights": SELECTED, "logits": linked("sigmoid")})
def answers_by_logits() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        logits = pyro.param("logits", f64([[-1.2, 0.4, 0.9], [1.4, -0.3, 0.1]]))
        return dist.Bernoulli(logits=logits[z]).to_event(1)

    return mixture(emission, BITS)


@case({"weights": SELECTED, "logits": linked("sigmoid")})
def answers_by_sigmoid() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        logits = pyro.param("logits", f64([[-1.2, 0.4, 0.9], [1.4, -0.3, 0.1]]))
        return dist.Bernoulli(probs=torch.sigmoid(logits)[z]).to_event(1)

    return mixture(emission, BITS)


@case({"weights": SELECTED, "log_rates": linked("exp")})
def rate_by_exp() -> Made:
    return mixture(lambda z: dist.Poisson(pyro.param("log_rates", f64([0.3, 1.9])).exp()[z]), COUNTS)


@case({"weights": SELECTED, "roots": linked("square")})
def rate_by_square() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        roots = pyro.param("roots", f64([1.6, 2.2]), constraint=positive)
        return dist.Poisson(roots[z] ** 2)

    return mixture(emission, COUNTS)


@case({"weights": SELECTED, "means": linked("reciprocal")})
def rate_by_reciprocal() -> Made:
    """Exponential waiting times by their mean."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        means = pyro.param("means", f64([0.8, 4.4]), constraint=positive)
        return dist.Exponential(1 / means[z])

    return mixture(emission, COUNTS + 0.3)


@case({"weights": SELECTED, "powers": linked("log")})
def loc_by_log() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        powers = pyro.param("powers", f64([0.5, 6.1]), constraint=positive)
        return dist.Normal(powers.log()[z], f64(0.9))

    return mixture(emission)


def _scaled(scale: Callable[[], Tensor]) -> Made:
    return mixture(lambda z: dist.Normal(locs()[z], scale()))


@case({**BOTH, "log_scale": linked("exp")})
def scale_by_exp() -> Made:
    return _scaled(lambda: pyro.param("log_scale", f64(0.2)).exp())


@case({**BOTH, "log_scales": linked("exp")})
def scale_each_by_exp() -> Made:
    return mixture(lambda z: dist.Normal(locs()[z], pyro.param("log_scales", f64([0.2, -0.4]))[z].exp()))


@case({**BOTH, "raw": linked("softplus")})
def scale_by_softplus() -> Made:
    return _scaled(lambda: softplus(pyro.param("raw", f64(0.7))))


@case({**BOTH, "variance": linked("sqrt")})
def scale_by_sqrt() -> Made:
    return _scaled(lambda: pyro.param("variance", f64(1.4), constraint=positive).sqrt())


PRECISION = either("linked", "opaque", links=("reciprocal sqrt", "reciprocal", "sqrt"))


@case({**BOTH, "precision": PRECISION})
def scale_by_reciprocal_root() -> Made:
    return _scaled(lambda: 1 / pyro.param("precision", f64(0.7), constraint=positive).sqrt())


@case({**BOTH, "precision": PRECISION})
def scale_by_rsqrt() -> Made:
    return _scaled(lambda: pyro.param("precision", f64(0.7), constraint=positive).rsqrt())


@case({**BOTH, "scale": either("selection", "linked", links=("sqrt", "square"))})
def scale_squared_and_back() -> Made:
    """The root of a square is the number itself, since scales are positive."""
    return _scaled(lambda: (pyro.param("scale", f64(1.2), constraint=positive) ** 2).sqrt())


@case({"row": either("selection", "opaque"), "logits": either("linked", "opaque", links=("softmax",), same=False)})
def rows_of_either_kind() -> Made:
    """A simplex and a row of logits side by side in one table of probabilities."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        row = pyro.param("row", f64([0.5, 0.3, 0.2]), constraint=simplex)
        logits = pyro.param("logits", f64([-0.7, 0.1, 0.6]))
        return dist.Categorical(torch.stack([row, torch.softmax(logits, -1)])[z])

    return mixture(emission, COUNTS.long() % 3, prior=lambda: dist.Categorical(f64([0.45, 0.55])))
