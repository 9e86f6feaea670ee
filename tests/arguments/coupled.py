"""Arguments that the likelihood ties to each other: a shape and a rate, a count and its odds. One step takes all."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import interval, lower_cholesky, positive, positive_definite, unit_interval
from torch import Tensor

from arguments.base import SELECTED, Made, affine, case, f64, linked, selection
from arguments.parts import COUNTS, FEATURES, PAIRS, X, mixture, scale, weights

WAITS = (0.6 * X).exp()
SHARES = torch.sigmoid(0.7 * X + 0.2)
COLUMN = FEATURES[:, 1]
SPREAD_OUT = f64([0, 3, 1, 17, 2, 5, 29, 1, 4, 16, 0, 2, 38, 3, 5, 1, 9, 12])
EXPOSURE = 1 + 0.4 * torch.sin(3.7 * X)
LINE = affine("exp", "sigmoid", exact=True)
PART = affine(exact=True)


def shapes() -> Tensor:
    """One shape for each of two components, a parameter."""
    return pyro.param("shapes", f64([1.7, 4.2]), constraint=positive)


def rates() -> Tensor:
    """One rate for each of two components, a parameter."""
    return pyro.param("rates", f64([1.4, 0.9]), constraint=positive)


def _mixture(sample: Callable[[], Callable[..., dist.TorchDistribution]], x: Tensor, *columns: Tensor) -> Made:
    """``sample()`` draws the global latents; what it returns is the emission proper."""

    def model(x: Tensor, *columns: Tensor) -> None:
        probs, emission = weights(), sample()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(probs))
            pyro.sample("x", emission(z, *columns), obs=x)

    return model, (x, *columns), {}


# Shared in different ways -------------------------------------------------------------------------


@case({"weights": SELECTED, "shapes": SELECTED, "rate": SELECTED})
def gamma_of_one_rate() -> Made:
    rate = f64(1.3)
    return mixture(lambda z: dist.Gamma(shapes()[z], pyro.param("rate", rate, constraint=positive)), WAITS)


@case({"weights": SELECTED, "shape": SELECTED, "rates": SELECTED})
def gamma_of_one_shape() -> Made:
    return mixture(lambda z: dist.Gamma(pyro.param("shape", f64(2.3), constraint=positive), rates()[z]), WAITS)


@case({"weights": SELECTED, "a": SELECTED, "b": SELECTED})
def beta_of_one_concentration() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        a = pyro.param("a", f64([1.3, 3.1]), constraint=positive)
        return dist.Beta(a[z], pyro.param("b", f64(1.9), constraint=positive))

    return mixture(emission, SHARES)


@case({"weights": SELECTED, "count": SELECTED, "probs": SELECTED})
def negative_binomial_of_one_count() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        probs = pyro.param("probs", f64([0.3, 0.6]), constraint=unit_interval)
        return dist.NegativeBinomial(pyro.param("count", f64(3.4), constraint=positive), probs[z])

    return mixture(emission, COUNTS)


# Beside coefficients ------------------------------------------------------------------------------


@case({"weights": SELECTED, "shapes": SELECTED, "beta": LINE})
def gamma_regression() -> Made:
    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        beta = pyro.param("beta", f64([[0.4, -0.2], [0.9, 0.3]]))
        return dist.Gamma(shapes()[z], (x * beta[z]).sum(-1).exp())

    return mixture(emission, WAITS, FEATURES)


@case({"weights": SELECTED, "counts": SELECTED, "intercepts": LINE, "slope": LINE})
def negative_binomial_regression() -> Made:
    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        counts = pyro.param("counts", f64([2.4, 5.1]), constraint=positive)
        intercepts, slope = pyro.param("intercepts", f64([-0.6, 0.3])), pyro.param("slope", f64(0.2))
        return dist.NegativeBinomial(counts[z], logits=intercepts[z] + slope * x)

    return mixture(emission, SPREAD_OUT, COLUMN)


@case({"weights": SELECTED, "one": LINE, "zero": LINE})
def beta_of_two_lines() -> Made:
    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        one, zero = pyro.param("one", f64([0.4, 0.9])), pyro.param("zero", f64([0.2, -0.1]))
        return dist.Beta((one[z] + 0.3 * x).exp(), (0.6 + zero[z] * x).exp())

    return mixture(emission, SHARES, COLUMN)


# Coefficients with bounds -------------------------------------------------------------------------


@case({"weights": SELECTED, "shapes": SELECTED, "rates": PART})
def gamma_of_exposures() -> Made:
    return mixture(lambda z, e: dist.Gamma(shapes()[z], rates()[z] * e), WAITS, EXPOSURE)


@case({"weights": SELECTED, "rates": PART})
def poisson_of_exposures() -> Made:
    def emission(z: Tensor, e: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(pyro.param("rates", f64([1.4, 5.2]), constraint=positive)[z] * e)

    return mixture(emission, COUNTS, EXPOSURE[: len(COUNTS)])


@case({"weights": SELECTED, "intercepts": PART, "slope": PART, "scale": SELECTED})
def line_that_rises() -> Made:
    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        intercepts, slope = (
            pyro.param("intercepts", f64([-0.8, 1.6])),
            pyro.param("slope", f64(0.3), constraint=positive),
        )
        return dist.Normal(intercepts[z] + slope * x, scale())

    return mixture(emission, X + 0.2 * COLUMN, COLUMN)


@case({"weights": SELECTED, "share": PART})
def share_of_a_known_chance() -> Made:
    def emission(z: Tensor, e: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(pyro.param("share", f64([0.2, 0.5]), constraint=interval(0.0, 0.6))[z] * e)

    return mixture(emission, (COUNTS > 3).to(COUNTS.dtype), EXPOSURE[: len(COUNTS)])


# Priors -------------------------------------------------------------------------------------------


@case({"weights": SELECTED, "shapes": SELECTED, "rates": SELECTED}, given={"rates": f64([1.4, 0.9])})
def gamma_of_a_conjugate_prior() -> Made:
    def sample() -> Callable[..., dist.TorchDistribution]:
        found = pyro.sample("rates", dist.Gamma(f64([2.0, 3.0]), f64(1.5)).to_event(1))
        return lambda z: dist.Gamma(shapes()[z], found[z])

    return _mixture(sample, WAITS)


@case({"weights": SELECTED, "shapes": SELECTED, "rates": SELECTED}, given={"shapes": f64([1.7, 4.2])})
def gamma_of_any_prior() -> Made:
    def sample() -> Callable[..., dist.TorchDistribution]:
        found = pyro.sample("shapes", dist.LogNormal(f64([0.5, 1.0]), f64(0.7)).to_event(1))
        return lambda z: dist.Gamma(found[z], rates()[z])

    return _mixture(sample, WAITS)


@case(
    {"weights": SELECTED, "shapes": SELECTED, "beta": LINE},
    given={"beta": f64([0.4, -0.2]), "shapes": f64([1.7, 4.2])},
)
def gamma_regression_of_priors() -> Made:
    def sample() -> Callable[..., dist.TorchDistribution]:
        beta = pyro.sample("beta", dist.Normal(f64([0.1, -0.1]), f64(0.8)).to_event(1))
        found = pyro.sample("shapes", dist.HalfNormal(f64([4.0, 5.0])).to_event(1))
        return lambda z, x: dist.Gamma(found[z], (x @ beta).exp())

    return _mixture(sample, WAITS, FEATURES)


@case({"weights": SELECTED, "beta": LINE}, given={"beta": f64([[-0.3, 0.1], [0.4, 0.2]])})
def logistic_regression_of_a_prior() -> Made:
    """A prior whose density is no quadratic function."""

    def sample() -> Callable[..., dist.TorchDistribution]:
        beta = pyro.sample("beta", dist.StudentT(f64(4.0), torch.zeros(2, 2, dtype=torch.float64), 0.9).to_event(2))
        return lambda z, x: dist.Bernoulli(logits=(x * beta[z]).sum(-1))

    return _mixture(sample, (COUNTS > 3).to(COUNTS.dtype), FEATURES[: len(COUNTS)])


@case({"weights": SELECTED, "beta": PART}, given={"beta": f64([[-0.6, 0.3], [1.1, 0.9]])})
def least_squares_of_a_prior() -> Made:
    def sample() -> Callable[..., dist.TorchDistribution]:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2, 2, dtype=torch.float64), 1.5).to_event(2))
        return lambda z, x: dist.Normal((x * beta[z]).sum(-1), f64(0.8))

    return _mixture(sample, X + 0.2 * COLUMN, FEATURES)


# Matrices beside coefficients ---------------------------------------------------------------------

START = f64([[1.1, 0.0], [0.3, 0.8]])
MATRIX = {
    "scale_tril": START,
    "covariance_matrix": START @ START.T,
    "precision_matrix": torch.linalg.inv(START @ START.T),
}
MOVED = affine(exact=True, same=False)  # given the matrices, and they given the lines


def _lines(argument: str) -> Made:
    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        beta = pyro.param("beta", f64([[[-0.6, 0.3], [0.2, 0.1]], [[1.1, 0.9], [0.5, -0.2]]]))
        constraint = lower_cholesky if argument == "scale_tril" else positive_definite
        matrix = pyro.param("matrix", MATRIX[argument].repeat(2, 1, 1), constraint=constraint)
        return dist.MultivariateNormal(beta[z, 0] + beta[z, 1] * x.unsqueeze(-1), **{argument: matrix[z]})

    return mixture(emission, PAIRS, COLUMN)


@case({"weights": SELECTED, "beta": MOVED, "matrix": selection(same=False)}, maximal=False)
def lines_in_two_dimensions() -> Made:
    return _lines("scale_tril")


@case({"weights": SELECTED, "beta": MOVED, "matrix": linked("cholesky", same=False)}, maximal=False)
def lines_of_a_covariance() -> Made:
    return _lines("covariance_matrix")


@case({"weights": SELECTED, "beta": MOVED, "matrix": linked("precision_cholesky", same=False)}, maximal=False)
def lines_of_a_precision() -> Made:
    return _lines("precision_matrix")


# Student's t --------------------------------------------------------------------------------------

LIFTED = affine(exact=True, same=False)


@case({"weights": SELECTED, "beta": LIFTED, "scale": selection(same=False), "df": selection(same=False)}, maximal=False)
def robust_regression() -> Made:
    """A step raises a bound of Q that touches where the step begins."""

    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        beta, df = pyro.param("beta", f64([[-0.6, 0.3], [1.1, 0.9]])), pyro.param("df", f64(4.5), constraint=positive)
        return dist.StudentT(df, (x * beta[z]).sum(-1), scale())

    return mixture(emission, X + 0.2 * COLUMN, FEATURES)
