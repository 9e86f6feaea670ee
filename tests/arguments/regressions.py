"""Means, and a scale, that are weighted sums of parameters with data as the weights."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import lower_cholesky, positive, simplex
from torch import Tensor

from arguments.base import SELECTED, Made, affine, case, either, f64, selection
from arguments.parts import FEATURES, GROUPS, PAIRS, X, mixture, scale

Y = 0.7 * FEATURES[:, 1] + f64([-0.9, 1.3, 1.3])[GROUPS] + 0.6 * torch.cos(9.1 * X)
COLUMN = FEATURES[:, 1]
LEAST_SQUARES = affine(exact=True)
REDUNDANT = affine(exact=True, same=False)


@case({"weights": SELECTED, "beta": LEAST_SQUARES, "scale": SELECTED})
def regression_each() -> Made:
    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        beta = pyro.param("beta", f64([[-0.6, 0.3], [1.1, 0.9]]))
        return dist.Normal((x * beta[z]).sum(-1), scale())

    return mixture(emission, Y, FEATURES)


@case({"weights": SELECTED, "intercepts": LEAST_SQUARES, "slope": LEAST_SQUARES, "scale": SELECTED})
def intercept_each() -> Made:
    """Intercepts differ, the slope is shared: one least-squares problem over both."""

    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        intercepts, slope = pyro.param("intercepts", f64([-0.6, 1.1])), pyro.param("slope", f64(0.2))
        return dist.Normal(intercepts[z] + slope * x, scale())

    return mixture(emission, Y, COLUMN)


@case({"weights": SELECTED, "beta": LEAST_SQUARES, "shift": LEAST_SQUARES, "scale": SELECTED})
def regression_by_matrix() -> Made:
    """A regression on all data and a shift for one of the components."""

    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(x @ pyro.param("beta", f64([-0.3, 0.5])) + pyro.param("shift", f64(1.6)) * z, scale())

    return mixture(emission, Y, FEATURES)


@case({"weights": SELECTED, "beta": affine(same=False), "scales": selection(exact=None, same=False)}, maximal=False)
def regression_of_unequal_scales() -> Made:
    """The line is shared and the scales are not: weighted least squares, then scales, in turn."""

    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        scales = pyro.param("scales", f64([0.6, 1.9]), constraint=positive)
        return dist.Normal(x @ pyro.param("beta", f64([-0.3, 0.5])), scales[z])

    return mixture(emission, Y, FEATURES)


@case({"weights": SELECTED, "a": REDUNDANT, "b": REDUNDANT, "scale": SELECTED})
def redundant_sum() -> Made:
    """Only ``a + b`` is determined: the normal equations are singular."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.param("a", f64([-1.2, 1.3]))[z] + pyro.param("b", f64(0.5)), scale())

    return mixture(emission)


@case({"weights": SELECTED, "a": LEAST_SQUARES, "scale": SELECTED})
def twice_minus_one() -> Made:
    return mixture(lambda z: dist.Normal(2 * pyro.param("a", f64([0.1, 1.4]))[z] - 1, scale()))


@case({"weights": SELECTED, "locs": LEAST_SQUARES, "scale": SELECTED})
def known_offset() -> Made:
    """A column of the data is added, at a coefficient that is no parameter."""

    def emission(z: Tensor, offset: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.param("locs", f64([-0.8, 1.9]))[z] + offset, scale())

    return mixture(emission, X + 0.3 * COLUMN, COLUMN)


@case({"weights": SELECTED, "a": LEAST_SQUARES, "b": LEAST_SQUARES, "scale": SELECTED})
def two_way() -> Made:
    """Component minus group; the first group's effect is the constant zero."""

    def emission(z: Tensor, group: Tensor) -> dist.TorchDistribution:
        a, b = pyro.param("a", f64([-0.8, 1.9])), pyro.param("b", f64([0.4, -0.3]))
        return dist.Normal(a[z] - torch.cat([torch.zeros_like(b[:1]), b])[group], scale())

    return mixture(emission, X, GROUPS)


@case({"weights": SELECTED, "a": REDUNDANT, "b": REDUNDANT, "scale": SELECTED})
def two_way_redundant() -> Made:
    def emission(z: Tensor, group: Tensor) -> dist.TorchDistribution:
        a, b = pyro.param("a", f64([-0.8, 1.9])), pyro.param("b", f64([0.1, 0.4, -0.3]))
        return dist.Normal(a[z] - b[group], scale())

    return mixture(emission, X, GROUPS)


@case({"weights": SELECTED, "steps": LEAST_SQUARES, "scale": SELECTED})
def cumulative() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.param("steps", f64([-1.2, 1.3, 1.6])).cumsum(-1)[z], scale())

    start = f64([0.4, 0.35, 0.25])
    return mixture(emission, prior=lambda: dist.Categorical(pyro.param("weights", start, constraint=simplex)))


@case({"weights": SELECTED, "base": affine(), "steps": affine()})
def ordered() -> Made:
    """Means in ascending order, since the steps between them are positive: least squares within bounds."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        base, steps = pyro.param("base", f64([-1.2])), pyro.param("steps", f64([2.1]), constraint=positive)
        return dist.Normal(torch.cat([base, steps]).cumsum(-1)[z], f64(0.9))

    return mixture(emission)


@case({"weights": SELECTED, "base": REDUNDANT, "locs": REDUNDANT, "scale": SELECTED})
def centred() -> Made:
    """Deviations from their mean, around a base: redundant by a constant."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        table = pyro.param("locs", f64([-1.1, 1.9]))
        return dist.Normal(pyro.param("base", f64(0.4)) + (table - table.mean())[z], scale())

    return mixture(emission)


@case({"weights": SELECTED, "matrix": affine(same=False), "tril": selection(exact=None, same=False)}, maximal=False)
def multivariate_regression() -> Made:
    """A matrix of coefficients for each component, and a covariance that all share."""

    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        start = f64([[[-0.9, 0.2], [0.3, -0.4]], [[1.4, 0.5], [0.6, 0.1]]])
        tril = pyro.param("tril", f64([[1.1, 0.0], [0.2, 0.9]]), constraint=lower_cholesky)
        loc = (pyro.param("matrix", start)[z] @ x.unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, scale_tril=tril)

    return mixture(emission, PAIRS.flip(0), FEATURES)


@case(
    {"weights": SELECTED, "locs": either("selection", "affine", same=False), "scale": affine(same=False)}, maximal=False
)
def scale_grows() -> Made:
    """A scale that is affine in a column of the data has no least squares."""

    def emission(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        spread = pyro.param("scale", f64([0.9, 0.4]), constraint=positive)
        return dist.Normal(pyro.param("locs", f64([-0.8, 1.9]))[z], spread[0] + spread[1] * x)

    return mixture(emission, X, COLUMN.abs())


@case({"weights": SELECTED, "locs": either("selection", "affine", exact=True), "scale": SELECTED})
def multiplied_by_ones() -> Made:
    """A column of ones: what is affine in general is a selection on these data."""

    def emission(z: Tensor, ones: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.param("locs", f64([-0.8, 1.9]))[z] * ones, scale())

    return mixture(emission, X, torch.ones_like(X))
