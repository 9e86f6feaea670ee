"""Vectors and matrices as one event, covariance in every form, and parts of an event under a mask."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.constraints import lower_cholesky, positive, positive_definite
from torch import Tensor

from arguments.base import SELECTED, Made, case, either, f64, linked, selection
from arguments.parts import BITS, PAIRS, X, mixture, weights

CENTRES = f64([[-0.9, 0.2], [1.8, 0.6]])
PLAIN = {"weights": SELECTED, "locs": SELECTED, "scale": SELECTED}


def _locs() -> Tensor:
    return pyro.param("locs", CENTRES)


def _scale() -> Tensor:
    return pyro.param("scale", f64([1.3, 0.8]), constraint=positive)


@case(PLAIN)
def event_of_one_dimension() -> Made:
    return mixture(lambda z: dist.Normal(_locs()[z], _scale()).to_event(1), PAIRS)


@case(PLAIN)
def event_of_two_dimensions() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        table = pyro.param("locs", f64([[[-0.9, 0.2], [0.4, -0.6]], [[1.8, 0.6], [-0.3, 0.9]]]))
        return dist.Normal(table[z], _scale()).to_event(2)

    return mixture(emission, torch.stack([PAIRS, PAIRS.flip(0).flip(1) * 0.6 + 0.2], -2))


@case(PLAIN)
def independent() -> Made:
    return mixture(lambda z: dist.Independent(dist.Normal(_locs()[z], _scale()), 1), PAIRS)


@case({"weights": SELECTED, "probs": SELECTED})
def independent_answers() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        probs = pyro.param("probs", f64([[0.3, 0.6, 0.7], [0.8, 0.4, 0.5]]), constraint=dist.constraints.unit_interval)
        return dist.Bernoulli(probs[z]).to_event(1)

    return mixture(emission, BITS)


def _with_gaps() -> Tensor:
    return PAIRS.masked_fill((torch.arange(36).reshape(18, 2) % 5) == 3, torch.nan)


@case(PLAIN)
def rows_masked() -> Made:
    """Rows with a missing entry count not at all, the latent of such a row included."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=~x.isnan().any(-1)):
                z = pyro.sample("z", dist.Categorical(weights()))
                pyro.sample("x", dist.Normal(_locs()[z], _scale()).to_event(1), obs=x)

    return model, (_with_gaps(),), {}


@case(PLAIN)
def entries_masked() -> Made:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights()))
            pyro.sample("x", dist.Normal(_locs()[z], _scale()).mask(~x.isnan()).to_event(1), obs=x)

    return model, (_with_gaps(),), {}


def _gaussian(**form: Callable[[Tensor], Tensor]) -> Made:
    """A mixture whose covariance is given by one keyword of MultivariateNormal, as a function of the latent."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.MultivariateNormal(_locs()[z], **{name: f(z) for name, f in form.items()})

    return mixture(emission, PAIRS)


TRIL = f64([[1.3, 0.0], [0.2, 0.9]])
TRILS = torch.stack([TRIL, f64([[0.8, 0.0], [-0.3, 1.1]])])


@case({"weights": SELECTED, "locs": SELECTED, "tril": SELECTED})
def tril_shared() -> Made:
    return _gaussian(scale_tril=lambda z: pyro.param("tril", TRIL, constraint=lower_cholesky))


@case({"weights": SELECTED, "locs": SELECTED, "trils": SELECTED})
def tril_each() -> Made:
    return _gaussian(scale_tril=lambda z: pyro.param("trils", TRILS, constraint=lower_cholesky)[z])


@case({"weights": SELECTED, "locs": SELECTED, "tril": SELECTED})
def tril_from_identity() -> Made:
    """It starts diagonal, and need not stay so."""
    return _gaussian(scale_tril=lambda z: pyro.param("tril", torch.eye(2).to(X), constraint=lower_cholesky))


@case({"weights": SELECTED, "locs": SELECTED, "covs": linked("cholesky")})
def covariance_from_identity() -> Made:
    start = torch.eye(2).to(X).expand(2, 2, 2)
    return _gaussian(covariance_matrix=lambda z: pyro.param("covs", start, constraint=positive_definite)[z])


@case({"weights": SELECTED, "locs": SELECTED, "cov": linked("cholesky")})
def covariance_shared() -> Made:
    return _gaussian(covariance_matrix=lambda z: pyro.param("cov", TRIL @ TRIL.T, constraint=positive_definite))


@case({"weights": SELECTED, "locs": SELECTED, "covs": linked("cholesky")})
def covariance_each() -> Made:
    return _gaussian(covariance_matrix=lambda z: pyro.param("covs", TRILS @ TRILS.mT, constraint=positive_definite)[z])


@case({"weights": SELECTED, "locs": SELECTED, "precision": linked("precision_cholesky")})
def precision_shared() -> Made:
    return _gaussian(precision_matrix=lambda z: pyro.param("precision", TRIL @ TRIL.T, constraint=positive_definite))


@case({"weights": SELECTED, "locs": SELECTED, "precisions": linked("precision_cholesky")})
def precision_each() -> Made:
    start = TRILS @ TRILS.mT
    return _gaussian(precision_matrix=lambda z: pyro.param("precisions", start, constraint=positive_definite)[z])


@case(PLAIN)
def tril_diagonal() -> Made:
    return _gaussian(scale_tril=lambda z: _scale().diag_embed())


@case({"weights": SELECTED, "locs": SELECTED, "scales": SELECTED})
def tril_diagonal_each() -> Made:
    start = f64([[1.3, 0.8], [0.7, 1.1]])
    return _gaussian(scale_tril=lambda z: pyro.param("scales", start, constraint=positive)[z].diag_embed())


@case({"weights": SELECTED, "locs": SELECTED, "variances": linked("cholesky", "sqrt")})
def covariance_diagonal() -> Made:
    start = f64([1.6, 0.7])
    return _gaussian(covariance_matrix=lambda z: torch.diag_embed(pyro.param("variances", start, constraint=positive)))


@case({"weights": SELECTED, "locs": SELECTED, "sigma": SELECTED})
def sigma_times_eye() -> Made:
    return _gaussian(scale_tril=lambda z: pyro.param("sigma", f64(1.2), constraint=positive) * torch.eye(2).to(X))


@case({"weights": SELECTED, "locs": SELECTED, "variance": linked("cholesky", "sqrt")})
def variance_times_eye() -> Made:
    return _gaussian(
        covariance_matrix=lambda z: pyro.param("variance", f64(1.4), constraint=positive) * torch.eye(2).to(X)
    )


@case(
    {
        "weights": SELECTED,
        "locs": selection(exact=None, same=False),
        "tril": either("opaque", "affine", "linked", same=False),
    },
    maximal=False,
)
def tril_scaled_each() -> Made:
    """A shape for all components, a constant size for each: no selection, though proportional to one."""
    sizes = f64([0.7, 1.4]).reshape(2, 1, 1)
    return _gaussian(scale_tril=lambda z: sizes[z] * pyro.param("tril", TRIL, constraint=lower_cholesky))
