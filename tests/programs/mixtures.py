"""Mixtures in a plate: one or more latents per datum, observations of many families."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import lower_cholesky, positive, simplex, unit_interval
from pyro.ops.indexing import Vindex
from torch import Tensor

from programs.base import Made, f64, program


@program("plate")
def gaussian_mixture() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.21, 0.47, 0.32]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.3, 0.4, 2.2]))
        scales = pyro.param("scales", f64([0.7, 0.9, 1.2]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)

    return model, (f64([-1.1, 0.2, 0.9, 2.6, 1.7]),), {}


@program("plate")
def multivariate_mixture() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.38, 0.62]), constraint=simplex)
        locs = pyro.param("locs", f64([[-0.7, 0.3], [1.1, 0.8]]))
        tril = pyro.param("tril", f64([[0.9, 0.0], [0.3, 1.1]]), constraint=lower_cholesky)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=tril), obs=x)

    x = f64([[-0.9, 0.1], [0.4, 1.0], [1.6, 0.2], [0.2, -0.6], [1.9, 1.4]])
    return model, (x,), {}


@program("plate")
def diagonal_mixture() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.44, 0.56]), constraint=simplex)
        locs = pyro.param("locs", f64([[-0.6, 0.2, 1.0], [1.3, 0.5, -0.4]]))
        scale = pyro.param("scale", f64([0.8, 1.1, 0.6]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scale).to_event(1), obs=x)

    x = f64([[-0.5, 0.4, 0.7], [1.0, 0.9, -0.1], [0.3, -0.2, 0.5], [1.8, 0.1, -0.9]])
    return model, (x,), {}


@program("plate")
def poisson_mixture() -> Made:
    def model(counts: Tensor) -> None:
        weights = pyro.param("weights", f64([0.27, 0.73]), constraint=simplex)
        rates = pyro.param("rates", f64([1.4, 5.3]), constraint=positive)
        with pyro.plate("data", len(counts)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("counts", dist.Poisson(rates[z]), obs=counts)

    return model, (f64([0.0, 3.0, 7.0, 2.0, 4.0, 1.0]),), {}


@program("plate")
def mixed_observations() -> Made:
    """Several observed sites of different families share one latent."""

    def model(size: Tensor, wait: Tensor, kind: Tensor) -> None:
        weights = pyro.param("weights", f64([0.35, 0.65]), constraint=simplex)
        locs = pyro.param("locs", f64([0.2, 1.7]))
        rates = pyro.param("rates", f64([0.8, 2.3]), constraint=positive)
        kinds = pyro.param("kinds", f64([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]), constraint=simplex)
        with pyro.plate("data", len(size)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("size", dist.LogNormal(locs[z], f64(0.6)), obs=size)
            pyro.sample("wait", dist.Exponential(rates[z]), obs=wait)
            pyro.sample("kind", dist.Categorical(kinds[z]), obs=kind)

    args = (f64([0.9, 3.1, 6.4, 1.8]), f64([1.1, 0.3, 0.2, 0.7]), torch.tensor([1, 0, 2, 1]))
    return model, args, {}


@program("plate")
def regression_mixture() -> Made:
    """Means are affine in the parameters, not a selection of them."""

    def model(features: Tensor, y: Tensor) -> None:
        weights = pyro.param("weights", f64([0.58, 0.42]), constraint=simplex)
        slopes = pyro.param("slopes", f64([[0.7, -0.4], [-1.2, 0.9]]))
        intercepts = pyro.param("intercepts", f64([0.3, 1.1]))
        scale = pyro.param("scale", f64(0.8), constraint=positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            mean = (slopes[z] * features).sum(-1) + intercepts[z]
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    features = f64([[0.1, 1.2], [0.8, -0.5], [-1.1, 0.3], [1.5, 0.9], [-0.2, -1.4]])
    return model, (features,), {"y": f64([-0.1, 1.2, 2.4, 0.6, 0.9])}


@program("plate")
def observed_child() -> Made:
    """Latent class analysis: discrete observed answers, a latent parent."""

    def model(answers: Tensor) -> None:
        weights = pyro.param("weights", f64([0.52, 0.31, 0.17]), constraint=simplex)
        probs = pyro.param(
            "probs",
            f64([[0.2, 0.7, 0.4], [0.9, 0.3, 0.6], [0.5, 0.1, 0.8]]),
            constraint=unit_interval,
        )
        with pyro.plate("people", len(answers)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("answers", dist.Bernoulli(probs[z]).to_event(1), obs=answers)

    return model, (f64([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1]]),), {}


@program("plate")
def logits_mixture() -> Made:
    """Weights and answers by logits: the parameters are unconstrained, and redundant by one."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", f64([0.3, -0.6, 0.1]))
        answer_logits = pyro.param("answer_logits", f64([-1.2, 0.4, 1.9]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Bernoulli(logits=answer_logits[z]), obs=x)

    return model, (f64([1.0, 0.0, 1.0, 1.0]),), {}


@program("plate")
def coupled_latents() -> Made:
    def model(x: Tensor) -> None:
        first = pyro.param("first", f64([0.41, 0.59]), constraint=simplex)
        second = pyro.param("second", f64([[0.2, 0.3, 0.5], [0.6, 0.25, 0.15]]), constraint=simplex)
        locs = pyro.param("locs", f64([[-1.4, 0.1, 0.9], [0.5, 1.6, 2.7]]))
        scale = pyro.param("scale", f64(0.9), constraint=positive)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Categorical(first))
            z2 = pyro.sample("z2", dist.Categorical(second[z1]))
            pyro.sample("x", dist.Normal(locs[z1, z2], scale), obs=x)

    return model, (f64([-0.8, 0.7, 2.3]),), {}


@program("plate")
def additive_latents() -> Made:
    """Two independent causes add up: coupled a posteriori, and means that select no parameter."""

    def model(x: Tensor) -> None:
        p, q = pyro.param("p", f64([0.3, 0.7]), constraint=simplex), f64([0.2, 0.5, 0.3])
        left, right = (
            pyro.param("left", f64([-0.9, 0.8])),
            pyro.param("right", f64([0.1, 1.3, 2.9])),
        )
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(p))
            b = pyro.sample("b", dist.Categorical(q))
            pyro.sample("x", dist.Normal(left[a] + right[b], f64(0.7)), obs=x)

    return model, (f64([0.4, 1.9, 3.2]),), {}


@program("plate")
def vindex_tables() -> Made:
    """A table per datum, read with Vindex, and a second one indexed by two latents and a slice."""

    def model(x: Tensor, word: Tensor) -> None:
        weights = pyro.param("weights", f64([0.33, 0.67]), constraint=simplex)
        locs = pyro.param("locs", f64([[0.2, 1.4], [-0.6, 0.9], [1.1, 2.5]]))
        vocabulary = pyro.param(
            "vocabulary",
            f64([[[0.1, 0.6, 0.3], [0.4, 0.4, 0.2]], [[0.7, 0.1, 0.2], [0.25, 0.3, 0.45]]]),
            constraint=simplex,
        )
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(weights))
            b = pyro.sample("b", dist.Bernoulli(f64(0.38))).long()
            pyro.sample("x", dist.Normal(Vindex(locs)[..., a], f64(0.8)), obs=x)
            pyro.sample("word", dist.Categorical(Vindex(vocabulary)[b, a, :]), obs=word)

    return model, (f64([0.9, 0.3, 1.6]), torch.tensor([1, 0, 2])), {}
