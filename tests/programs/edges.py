"""Edges: one datum, one component, no child, no data, impossible states, single precision."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import simplex, unit_interval
from torch import Tensor

from programs.base import Made, f64, program
from programs.chains import hidden_markov


def _fixed_scale_mixture(x: Tensor, weights: Tensor, locs: Tensor) -> Made:
    def model(x: Tensor) -> None:
        p = pyro.param("weights", lambda: weights.clone(), constraint=simplex)
        mean = pyro.param("locs", lambda: locs.clone())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(p))
            pyro.sample("x", dist.Normal(mean[z], f64(0.8)), obs=x)

    return model, (x,), {}


@program("plate", "edge")
def single_datum() -> Made:
    return _fixed_scale_mixture(f64([0.6]), f64([0.2, 0.5, 0.3]), f64([-0.9, 0.4, 1.7]))


@program("plate", "edge")
def single_component() -> Made:
    return _fixed_scale_mixture(f64([0.6, -0.3, 1.9]), f64([1.0]), f64([0.4]))


@program("plate", "edge")
def single_datum_and_component() -> Made:
    return _fixed_scale_mixture(f64([0.6]), f64([1.0]), f64([0.4]))


@program("markov", "edge")
def single_step_chain() -> Made:
    model, _, kwargs = hidden_markov()
    return model, (f64([0.4]),), kwargs


@program("plate", "edge")
def childless_latent() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.45, 0.55]), constraint=simplex)
        idle = pyro.param("idle", f64([[0.1, 0.6, 0.3], [0.5, 0.3, 0.2]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.8, 1.3]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("unused", dist.Categorical(idle[z]))
            pyro.sample("x", dist.Normal(locs[z], f64(0.9)), obs=x)

    return model, (f64([0.2, -0.9, 1.6]),), {}


@program("global", "edge")
def prior_only() -> Made:
    """No data at all: the log evidence is zero and the posterior is the prior."""

    def model() -> None:
        p = pyro.param("p", f64([0.3, 0.7]), constraint=simplex)
        q = pyro.param("q", f64([[0.1, 0.9], [0.6, 0.4]]), constraint=simplex)
        a = pyro.sample("a", dist.Categorical(p))
        pyro.sample("b", dist.Categorical(q[a]))

    return model, (), {}


def _left_to_right(step: Callable[[Tensor], dist.Categorical]) -> Made:
    """A chain that starts in state 0 and never goes back; the zeros are constants of the model."""
    allowed = f64([[1, 1, 0], [0, 1, 1], [0, 0, 1]])

    def model(x: Tensor) -> None:
        stay = pyro.param("stay", f64([0.6, 0.7]), constraint=unit_interval)
        locs = pyro.param("locs", f64([-0.9, 0.5, 1.8]))
        one = torch.ones(1, dtype=torch.float64)
        diagonal, above = torch.cat([stay, one]).diag(), (1 - stay).diag(1)
        trans = (diagonal + above) * allowed
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", step(trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.8)), obs=x[t])

    return model, (f64([-0.6, -0.1, 0.9, 1.5, 0.7]),), {}


@program("markov", "impossible")
def left_to_right_probs() -> Made:
    """Pyro clamps a probability of exactly zero to the smallest step of its dtype."""
    return _left_to_right(lambda probs: dist.Categorical(probs=probs))


@program("markov", "impossible")
def left_to_right_logits() -> Made:
    """The logarithm of zero is minus infinity, and stays so."""
    return _left_to_right(lambda probs: dist.Categorical(logits=probs.log()))


@program("plate", "impossible")
def impossible_states() -> Made:
    """States that some data may not take: logits of minus infinity, as data not as parameters."""

    def model(x: Tensor, allowed: Tensor) -> None:
        logits = pyro.param("logits", f64([0.4, -0.3, 0.1]))
        locs = pyro.param("locs", f64([-1.1, 0.2, 1.6]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits.masked_fill(~allowed, -torch.inf)))
            pyro.sample("x", dist.Normal(locs[z], f64(0.9)), obs=x)

    allowed = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    return model, (f64([0.3, -0.7, 1.2]), allowed), {}


@program("plate", "float32")
def opposed_factors() -> Made:
    """Prior and likelihood contradict each other by 25 nats: too much for exp(a) @ exp(b)."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.tensor([12.3, -12.7]))
        locs = pyro.param("locs", torch.tensor([-2.5, 2.5]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(locs[z], torch.tensor(1.0)), obs=x)

    return model, (torch.tensor([5.2, 5.1, -1.9]),), {}
