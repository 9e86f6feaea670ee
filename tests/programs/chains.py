"""Latents in a pyro.markov loop."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.constraints import positive, simplex, unit_interval
from pyro.ops.indexing import Vindex
from torch import Tensor

from programs.base import Made, f64, program


@program("markov")
def hidden_markov() -> Made:
    def model(x: Tensor) -> None:
        init = pyro.param("init", f64([0.5, 0.2, 0.3]), constraint=simplex)
        trans = pyro.param(
            "trans",
            f64([[0.7, 0.2, 0.1], [0.15, 0.55, 0.3], [0.25, 0.35, 0.4]]),
            constraint=simplex,
        )
        locs = pyro.param("locs", f64([-1.1, 0.3, 1.8]))
        scale = pyro.param("scale", f64(0.9), constraint=positive)
        z = None
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=x[t])

    return model, (f64([-0.7, 0.4, 1.3, 0.9, -0.2]),), {}


@program("markov", "plate", "mask")
def ragged_chains() -> Made:
    def model(sequences: Tensor, lengths: Tensor) -> None:
        init = pyro.param("init", f64([0.63, 0.37]), constraint=simplex)
        trans = pyro.param("trans", f64([[0.8, 0.2], [0.35, 0.65]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.6, 1.3]))
        z = None
        with pyro.plate("sequences", len(sequences)):
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                    pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.8)), obs=sequences[:, t])

    sequences = f64([[0.3, -0.9, 1.1, 1.6], [1.4, 0.2, 0.0, 0.0]])
    return model, (sequences,), {"lengths": torch.tensor([4, 2])}


@program("markov", "plate", "nested", "mask")
def tones_chain() -> Made:
    """Model 1 of Pyro's HMM example: the chain lives at dim -2, its tones at dim -1."""

    def model(sequences: Tensor, lengths: Tensor) -> None:
        probs_x = pyro.param("probs_x", f64([[0.7, 0.3], [0.4, 0.6]]), constraint=simplex)
        probs_y = pyro.param("probs_y", f64([[0.2, 0.8, 0.55], [0.9, 0.35, 0.1]]), constraint=unit_interval)
        tones_plate = pyro.plate("tones", sequences.shape[-1], dim=-1)
        tones = torch.arange(sequences.shape[-1])
        with pyro.plate("sequences", len(sequences), dim=-2):
            x = torch.tensor(0)
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]))
                    with tones_plate:
                        probs = Vindex(probs_y)[x, tones]
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs), obs=sequences[:, t])

    sequences = f64([[[0, 1, 1], [1, 0, 0], [1, 1, 0]], [[1, 0, 1], [0, 1, 0], [0, 0, 0]]])
    return model, (sequences, torch.tensor([3, 2])), {}


@program("markov")
def factorial_chains() -> Made:
    """Two independent chains, coupled by the emission that sees both."""

    def model(y: Tensor) -> None:
        probs_w = pyro.param("probs_w", f64([[0.6, 0.4], [0.25, 0.75]]), constraint=simplex)
        probs_x = pyro.param("probs_x", f64([[0.85, 0.15], [0.3, 0.7]]), constraint=simplex)
        probs_y = pyro.param("probs_y", f64([[0.1, 0.55], [0.7, 0.35]]), constraint=unit_interval)
        w = x = torch.tensor(0)
        for t in pyro.markov(range(len(y))):
            w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]))
            x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]))
            pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[w, x]), obs=y[t])

    return model, (f64([1.0, 0.0, 0.0, 1.0]),), {}


@program("markov")
def coupled_chains() -> Made:
    """Model 4 of Pyro's HMM example: x depends on its own past and on w."""

    def model(y: Tensor) -> None:
        probs_w = pyro.param("probs_w", f64([[0.6, 0.4], [0.25, 0.75]]), constraint=simplex)
        probs_x = pyro.param(
            "probs_x",
            f64([[[0.8, 0.2], [0.35, 0.65]], [[0.1, 0.9], [0.55, 0.45]]]),
            constraint=simplex,
        )
        locs = pyro.param("locs", f64([[-0.9, 0.7], [0.2, 1.6]]))
        w = x = torch.tensor(0)
        for t in pyro.markov(range(len(y))):
            w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]))
            x = pyro.sample(f"x_{t}", dist.Categorical(Vindex(probs_x)[w, x]))
            pyro.sample(f"y_{t}", dist.Normal(Vindex(locs)[w, x], f64(0.7)), obs=y[t])

    return model, (f64([0.5, -0.3, 1.2, 0.8]),), {}


@program("markov")
def second_order_chain() -> Made:
    def model(x: Tensor) -> None:
        trans = pyro.param("trans", f64([[[0.7, 0.3], [0.2, 0.8]], [[0.45, 0.55], [0.9, 0.1]]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.7, 1.1]))
        before = last = torch.tensor(0)
        for t in pyro.markov(range(len(x)), history=2):
            z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(trans)[before, last]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.9)), obs=x[t])
            before, last = last, z

    return model, (f64([0.4, -0.8, 1.3, 0.1, 0.9, -0.5]),), {}


@program("markov")
def many_emissions() -> Made:
    def model(x: Tensor, counts: Tensor, kinds: Tensor) -> None:
        init = pyro.param("init", f64([0.7, 0.3]), constraint=simplex)
        trans = pyro.param("trans", f64([[0.65, 0.35], [0.2, 0.8]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.4, 1.2]))
        rates = pyro.param("rates", f64([1.3, 3.8]), constraint=positive)
        probs = pyro.param("probs", f64([[0.5, 0.3, 0.2], [0.15, 0.25, 0.6]]), constraint=simplex)
        z = None
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.9)), obs=x[t])
            pyro.sample(f"count_{t}", dist.Poisson(rates[z]), obs=counts[t])
            pyro.sample(f"kind_{t}", dist.Categorical(probs[z]), obs=kinds[t])

    args = (f64([0.3, 1.1, -0.6, 0.8]), f64([2.0, 4.0, 0.0, 1.0]), torch.tensor([1, 2, 0, 2]))
    return model, args, {}


@program("markov", "plate")
def autoregressive_chains() -> Made:
    """Each emission depends on the one before: an observed value inside a distribution argument."""

    def model(x: Tensor) -> None:
        init = pyro.param("init", f64([0.55, 0.45]), constraint=simplex)
        trans = pyro.param("trans", f64([[0.75, 0.25], [0.4, 0.6]]), constraint=simplex)
        slopes = pyro.param("slopes", f64([0.8, -0.5]))
        locs = pyro.param("locs", f64([0.1, 0.9]))
        z, previous = None, f64(0.0)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                mean = locs[z] + slopes[z] * previous
                pyro.sample(f"x_{t}", dist.Normal(mean, f64(0.7)), obs=x[:, t])
                previous = x[:, t]

    return model, (f64([[0.6, 0.9, -0.3, 1.4], [-0.2, 0.5, 1.1, 0.7]]),), {}


@program("markov", "plate")
def mixture_of_chains() -> Made:
    """A class per sequence chooses its dynamics: a loop of cliques (class, z_t, z_t+1)."""

    def model(x: Tensor) -> None:
        classes = pyro.param("classes", f64([0.46, 0.54]), constraint=simplex)
        init = pyro.param("init", f64([[0.7, 0.3], [0.2, 0.8]]), constraint=simplex)
        trans = pyro.param("trans", f64([[[0.9, 0.1], [0.3, 0.7]], [[0.4, 0.6], [0.55, 0.45]]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.8, 1.0]))
        with pyro.plate("sequences", len(x)):
            c = pyro.sample("c", dist.Categorical(classes))
            z = None
            for t in pyro.markov(range(x.shape[1])):
                probs = init[c] if z is None else Vindex(trans)[c, z]
                z = pyro.sample(f"z_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.9)), obs=x[:, t])

    return model, (f64([[-0.5, 0.7, 1.2], [0.9, 0.3, -1.0]]),), {}


@program("markov", "global")
def class_over_chain() -> Made:
    """As above with one sequence and no plate; the class changes the emission too."""

    def model(x: Tensor) -> None:
        classes = pyro.param("classes", f64([0.3, 0.25, 0.45]), constraint=simplex)
        trans = pyro.param("trans", f64([[0.8, 0.2], [0.35, 0.65]]), constraint=simplex)
        locs = pyro.param("locs", f64([[-0.8, 1.0], [0.2, 0.5], [1.4, -0.3]]))
        c = pyro.sample("c", dist.Categorical(classes))
        z = torch.tensor(1)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(Vindex(locs)[c, z], f64(0.8)), obs=x[t])

    return model, (f64([0.9, 0.1, -0.6, 1.2]),), {}


@program("markov", "plate")
def chain_of_mixtures() -> Made:
    """A plate of local latents hangs from every link of a single chain."""

    def model(x: Tensor) -> None:
        trans = pyro.param("trans", f64([[0.7, 0.3], [0.25, 0.75]]), constraint=simplex)
        weights = pyro.param("weights", f64([[0.6, 0.4], [0.15, 0.85]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.9, 0.8]))
        items = pyro.plate("items", x.shape[1])
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            with items:
                w = pyro.sample(f"w_{t}", dist.Categorical(weights[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[w], f64(0.7)), obs=x[t])

    return model, (f64([[-0.4, 0.6], [1.1, 0.2], [0.5, -1.3]]),), {}
