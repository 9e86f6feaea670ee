"""Latents outside, beside and inside plates."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex
from torch import Tensor

from programs.base import Made, f64, program


@program("global")
def global_latent() -> Made:
    """One latent for all the data: its posterior sees a sum over the plate."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.2, 0.5, 0.3]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.4, 0.3, 0.8]))
        z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(locs[z], f64(1.3)), obs=x)

    return model, (f64([0.6, -0.7, 1.1, 0.2]),), {}


@program("global", "plate")
def global_and_local() -> Made:
    def model(x: Tensor) -> None:
        regime = pyro.param("regime", f64([0.43, 0.57]), constraint=simplex)
        weights = pyro.param("weights", f64([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.0, 0.6, 1.9]))
        scales = pyro.param("scales", f64([0.8, 1.2]), constraint=positive)
        c = pyro.sample("c", dist.Categorical(regime))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights[c]))
            pyro.sample("x", dist.Normal(locs[z], scales[c]), obs=x)

    return model, (f64([-0.6, 0.9, 2.2, 0.1]),), {}


@program("global", "plate")
def sibling_plates() -> Made:
    def model(x: Tensor, y: Tensor) -> None:
        weights = pyro.param("weights", f64([0.36, 0.64]), constraint=simplex)
        probs = pyro.param("probs", f64([[0.3, 0.7], [0.8, 0.2]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.9, 1.2]))
        rates = pyro.param("rates", f64([[1.1, 2.9], [4.2, 0.6]]), constraint=positive)
        c = pyro.sample("c", dist.Categorical(weights))
        with pyro.plate("left", len(x)):
            a = pyro.sample("a", dist.Categorical(probs[c]))
            pyro.sample("x", dist.Normal(locs[a], f64(0.9)), obs=x)
        with pyro.plate("right", len(y)):
            b = pyro.sample("b", dist.Categorical(probs[1 - c]))
            pyro.sample("y", dist.Poisson(rates[c, b]), obs=y)

    return model, (f64([-0.3, 1.4, 0.8]), f64([2.0, 5.0])), {}


@program("plate")
def independent_plates() -> Made:
    """Nothing in common but a parameter: the statistics of both plates add up."""

    def model(x: Tensor, y: Tensor) -> None:
        weights = pyro.param("weights", f64([0.29, 0.71]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.2, 1.5]))
        with pyro.plate("first", len(x)):
            a = pyro.sample("a", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[a], f64(0.7)), obs=x)
        with pyro.plate("second", len(y)):
            b = pyro.sample("b", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(locs[b] + 0.4, f64(1.1)), obs=y)

    return model, (f64([0.3, 1.2, -0.8]), f64([1.9, 0.5])), {}


def _documents(docs_dim: int, words: Tensor) -> Made:
    def model(words: Tensor) -> None:
        classes = pyro.param("classes", f64([0.4, 0.6]), constraint=simplex)
        topics = pyro.param("topics", f64([[0.75, 0.25], [0.35, 0.65]]), constraint=simplex)
        vocabulary = pyro.param("vocabulary", f64([[0.1, 0.2, 0.3, 0.4], [0.45, 0.15, 0.05, 0.35]]), constraint=simplex)
        words_dim = -3 - docs_dim
        docs = pyro.plate("docs", words.shape[docs_dim], dim=docs_dim)
        with docs:
            c = pyro.sample("class", dist.Categorical(classes))
        with docs, pyro.plate("words", words.shape[words_dim], dim=words_dim):
            z = pyro.sample("topic", dist.Categorical(topics[c]))
            pyro.sample("word", dist.Categorical(vocabulary[z]), obs=words)

    return model, (words,), {}


@program("plate", "nested")
def documents_rightmost() -> Made:
    return _documents(-1, torch.tensor([[0, 3], [2, 1], [3, 0]]))


@program("plate", "nested")
def documents_leftmost() -> Made:
    return _documents(-2, torch.tensor([[0, 2, 3], [3, 1, 1]]))


@program("plate", "nested")
def latent_at_dim_minus_two() -> Made:
    """The inner plate holds observations only."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.25, 0.45, 0.3]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.8, 0.5, 1.4]))
        scale = pyro.param("scale", f64([[0.9, 1.3]]), constraint=positive)
        groups = pyro.plate("groups", x.shape[0], dim=-2)
        items = pyro.plate("items", x.shape[1], dim=-1)
        with groups:
            z = pyro.sample("z", dist.Categorical(weights))
            with items:
                pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model, (f64([[-0.4, 0.1], [0.9, 1.8], [0.3, -1.2], [1.5, 0.6]]),), {}


@program("plate")
def sequential_plate() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.62, 0.38]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.5, 1.2]))
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Categorical(weights))
            pyro.sample(f"x_{i}", dist.Normal(locs[z], f64(0.8)), obs=x[i])

    return model, (f64([0.2, -0.9, 1.6]),), {}
