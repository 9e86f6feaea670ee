"""A distribution of every family, and every prior that one of them is conjugate to."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

tensor = partial(torch.tensor, dtype=torch.float64)
Args = dict[str, Tensor]
Prior = Callable[[int], Any]


@dataclass(frozen=True)
class Example:
    """A distribution over three cells; ``others`` are the same one in other parameterisations."""

    make: Callable[..., Any]
    args: Args
    others: tuple[Callable[..., Any], ...] = ()

    @property
    def fn(self) -> Any:
        return self.make(**self.args)

    def log_prob(self, args: Args, value: Tensor) -> Tensor:
        if isinstance(self.fn, dist.VonMises):  # torch's own is a polynomial, off by 5e-7
            kappa = args["concentration"]
            return kappa * ((value - args["loc"]).cos() - 1) - (2 * math.pi * torch.special.i0e(kappa)).log()
        return self.make(**args).log_prob(value)


def logit(p: Tensor) -> Tensor:
    return p.log() - torch.log1p(-p)


THIRDS = tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.25, 0.5, 0.25]])
TRIL = tensor([[[1.0, 0.0], [0.5, 0.8]], [[0.5, 0.0], [-0.3, 1.2]], [[2.0, 0.0], [1.0, 0.4]]])
PLANE = tensor([[0.0, 1.0], [-1.0, 0.5], [2.0, -2.0]])
EXAMPLES = {
    "Bernoulli": Example(
        dist.Bernoulli, {"probs": tensor([0.2, 0.5, 0.9])}, (lambda probs: dist.Bernoulli(logits=logit(probs)),)
    ),
    "Beta": Example(dist.Beta, {"concentration1": tensor([0.6, 2.0, 5.0]), "concentration0": tensor([0.9, 3.0, 1.5])}),
    "Binomial": Example(
        lambda probs: dist.Binomial(tensor([7.0, 7.0, 3.0]), probs),
        {"probs": tensor([0.2, 0.5, 0.9])},
        (lambda probs: dist.Binomial(tensor([7.0, 7.0, 3.0]), logits=logit(probs)),),
    ),
    "Categorical": Example(
        dist.Categorical, {"probs": THIRDS}, (lambda probs: dist.Categorical(logits=probs.log() + 1),)
    ),
    "Dirichlet": Example(
        dist.Dirichlet, {"concentration": tensor([[0.5, 1.0, 2.0], [5.0, 3.0, 1.0], [0.8, 0.8, 0.8]])}
    ),
    "Exponential": Example(dist.Exponential, {"rate": tensor([0.2, 1.0, 5.0])}),
    "Gamma": Example(dist.Gamma, {"concentration": tensor([0.7, 2.0, 4.0]), "rate": tensor([0.5, 2.0, 1.0])}),
    "Geometric": Example(
        dist.Geometric, {"probs": tensor([0.2, 0.5, 0.8])}, (lambda probs: dist.Geometric(logits=logit(probs)),)
    ),
    "LogNormal": Example(dist.LogNormal, {"loc": tensor([-1.0, 0.5, 2.0]), "scale": tensor([0.5, 1.0, 2.0])}),
    "Multinomial": Example(
        lambda probs: dist.Multinomial(5, probs),
        {"probs": THIRDS},
        (lambda probs: dist.Multinomial(5, logits=probs.log()),),
    ),
    "MultivariateNormal": Example(
        lambda loc, scale_tril: dist.MultivariateNormal(loc, scale_tril=scale_tril),
        {"loc": PLANE, "scale_tril": TRIL},
        (
            lambda loc, scale_tril: dist.MultivariateNormal(loc, scale_tril @ scale_tril.mT),
            lambda loc, scale_tril: dist.MultivariateNormal(loc, precision_matrix=torch.cholesky_inverse(scale_tril)),
        ),
    ),
    "NegativeBinomial": Example(
        dist.NegativeBinomial,
        {"total_count": tensor([0.7, 1.5, 3.0]), "probs": tensor([0.8, 0.6, 0.7])},
        (lambda total_count, probs: dist.NegativeBinomial(total_count, logits=logit(probs)),),
    ),
    "Normal": Example(dist.Normal, {"loc": tensor([-1.0, 0.5, 2.0]), "scale": tensor([0.5, 1.0, 2.0])}),
    "OneHotCategorical": Example(
        dist.OneHotCategorical, {"probs": THIRDS}, (lambda probs: dist.OneHotCategorical(logits=probs.log() + 1),)
    ),
    "Poisson": Example(dist.Poisson, {"rate": tensor([0.3, 2.0, 9.0])}),
    "StudentT": Example(
        dist.StudentT,
        {"df": tensor([3.0, 1.5, 6.0]), "loc": tensor([-1.0, 0.5, 2.0]), "scale": tensor([0.5, 1.0, 2.0])},
    ),
    "VonMises": Example(dist.VonMises, {"loc": tensor([-1.0, 0.5, 1.5]), "concentration": tensor([0.8, 3.0, 20.0])}),
    "ZeroInflatedPoisson": Example(
        lambda gate, rate: dist.ZeroInflatedPoisson(rate, gate=gate),
        {"gate": tensor([0.3, 0.5, 0.2]), "rate": tensor([1.5, 4.0, 9.0])},
        (lambda gate, rate: dist.ZeroInflatedPoisson(rate, gate_logits=logit(gate)),),
    ),
}


def same(x: Tensor) -> Tensor:
    return x


def per_group(kind: Callable[..., Any], **params: Tensor) -> Prior:
    """A prior over the first so many groups."""
    return lambda size: kind(**{name: value[:size] for name, value in params.items()})


NORMAL = per_group(dist.Normal, loc=tensor([0.0, 1.0, -1.0]), scale=tensor([0.5, 1.0, 0.1]))
NORMALS = per_group(dist.Normal, loc=PLANE.flip(0), scale=tensor([[0.3, 0.3], [1.0, 0.1], [0.5, 2.0]]))
INVERSE_GAMMA = per_group(dist.InverseGamma, concentration=tensor([2.0, 3.0, 9.0]), rate=tensor([1.0, 0.5, 30.0]))
GAMMA = per_group(dist.Gamma, concentration=tensor([2.0, 3.0, 9.0]), rate=tensor([1.0, 0.5, 3.0]))
BETA = per_group(dist.Beta, concentration1=tensor([2.0, 3.0, 9.0]), concentration0=tensor([1.0, 5.0, 3.0]))
DIRICHLET = per_group(dist.Dirichlet, concentration=10 * THIRDS)
VON_MISES = per_group(dist.VonMises, loc=tensor([0.0, 2.0, -1.0]), concentration=tensor([9.0, 1.0, 50.0]))
WISHART = per_group(dist.Wishart, df=tensor([3.0, 4.0, 9.0]), scale_tril=TRIL.flip(0))
LOCATED = ("Normal", "LogNormal", "StudentT")
TRIALS = ("Bernoulli", "Binomial", "Geometric", "NegativeBinomial")
# Family, argument, link, prior, and the inverse of the link: what the prior is on.
PRIORS = [
    *((name, "loc", "identity", NORMAL, same) for name in LOCATED),
    *((name, "scale", "sqrt", INVERSE_GAMMA, torch.square) for name in LOCATED),
    *((name, "scale", "reciprocal sqrt", GAMMA, lambda x: x**-2) for name in LOCATED),
    *((name, "rate", "identity", GAMMA, same) for name in ("Poisson", "Exponential", "Gamma")),
    *((name, "probs", "identity", BETA, same) for name in TRIALS),
    *((name, "probs", "identity", DIRICHLET, same) for name in ("Categorical", "OneHotCategorical", "Multinomial")),
    ("Gamma", "rate", "reciprocal", INVERSE_GAMMA, torch.reciprocal),
    ("VonMises", "loc", "identity", VON_MISES, same),
    ("MultivariateNormal", "loc", "identity", NORMALS, same),
    ("MultivariateNormal", "scale_tril", "precision_cholesky", WISHART, torch.cholesky_inverse),
]
