"""Latents that are not Categorical."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval
from torch import Tensor

from programs.base import Made, f64, program


@program("plate", "family")
def bernoulli_latent() -> Made:
    def model(x: Tensor) -> None:
        p = pyro.param("p", f64(0.37), constraint=unit_interval)
        low, high = pyro.param("low", f64(-0.6)), pyro.param("high", f64(1.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(torch.where(z > 0, high, low), f64(0.8)), obs=x)

    return model, (f64([0.4, -1.1, 1.7, 0.6, 0.9]),), {}


@program("global", "family")
def noisy_or() -> Made:
    """Global Bernoulli causes, observed Bernoulli symptoms, no parameter selected as it is."""

    def model(symptoms: Tensor) -> None:
        priors = pyro.param("priors", f64([0.3, 0.15]), constraint=unit_interval)
        strength = pyro.param("strength", f64([[0.8, 0.4, 0.1], [0.25, 0.6, 0.7]]), constraint=positive)
        flu = pyro.sample("flu", dist.Bernoulli(priors[0]))
        cold = pyro.sample("cold", dist.Bernoulli(priors[1]))
        leak = f64([0.05, 0.1, 0.07])
        with pyro.plate("symptoms", len(symptoms)):
            spared = torch.exp(-leak - flu * strength[0] - cold * strength[1])
            pyro.sample("symptom", dist.Bernoulli(1 - spared), obs=symptoms)

    return model, (f64([1.0, 1.0, 0.0]),), {}


@program("plate", "family")
def onehot_latent() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.26, 0.4, 0.34]), constraint=simplex)
        locs = pyro.param("locs", f64([[-1.0, 0.2], [0.5, 1.4], [1.7, -0.6]]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(weights))
            pyro.sample("x", dist.Normal(z @ locs, f64([0.8, 1.1])).to_event(1), obs=x)

    return model, (f64([[-0.6, 0.5], [0.8, 0.9], [1.3, -0.1], [0.2, 0.3]]),), {}


@program("plate", "family")
def binomial_latent() -> Made:
    def model(x: Tensor) -> None:
        p = pyro.param("p", f64(0.43), constraint=unit_interval)
        base, step = pyro.param("base", f64(0.2)), pyro.param("step", f64(0.9))
        with pyro.plate("data", len(x)):
            copies = pyro.sample("copies", dist.Binomial(3, p))
            pyro.sample("x", dist.Normal(base + step * copies, f64(0.6)), obs=x)

    return model, (f64([0.5, 1.6, 2.2, 1.0]),), {}
