"""A factorial hidden Markov model of counts: independent chains, each of which adds to the rate when it is on.

    z_{d,1} ~ Categorical(init[d]),    z_{d,t} | z_{d,t-1} = j  ~ Categorical(trans[d, j])      d = 1 ... D, t = 2 ... T
    x_t | z_t  ~ Poisson(base + sum_d adds[d] z_{d,t})

where z_{d,t} is zero or one. Given the data the chains depend on each other, so the sum is over all 2^D joint states
of a time. Earthquakes a year, two chains: -329.0707, one of several maxima, with starts that are certain.

Source: Ghahramani & Jordan (1997), Machine Learning 29, 245-273, with Poisson counts. Data: see `data/README.md`.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from models import poisson_hmm

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

# What `simulate` draws from.
TRUTH = {
    "init": torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64),
    "trans": torch.tensor([[[0.95, 0.05], [0.1, 0.9]], [[0.7, 0.3], [0.4, 0.6]]], dtype=torch.float64),
    "base": torch.tensor(3.0, dtype=torch.float64),
    "adds": torch.tensor([6.0, 12.0], dtype=torch.float64),
}


def model(x: Tensor, num_chains: int = 2) -> None:
    """Draw a series of counts `x` (T,), sites `z0_0, z1_0, x_0, z0_1, ...`.

    Parameters: the rows of `init` (D, 2) and of `trans` (D, 2, 2), on the simplex; `base` and `adds` (D,), positive.
    """
    D = num_chains
    init = pyro.param("init", x.new_full((D, 2), 0.5), constraint=constraints.simplex)
    stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    trans = pyro.param("trans", stay.to(x).repeat(D, 1, 1), constraint=constraints.simplex)
    base = pyro.param("base", lambda: x.mean() / 2 + 0.1, constraint=constraints.positive)
    adds = pyro.param("adds", lambda: start_adds(x, D), constraint=constraints.positive)
    z: list[Tensor] = []
    for t in pyro.markov(range(len(x))):
        probs = [trans[d, z[d]] for d in range(D)] if z else init
        z = [pyro.sample(f"z{d}_{t}", dist.Categorical(probs[d])) for d in range(D)]
        pyro.sample(f"x_{t}", dist.Poisson(base + sum(adds[d] * z[d] for d in range(D))), obs=x[t])


def start_adds(x: Tensor, num_chains: int) -> Tensor:
    """Proportional to 1 ... D, so that chains can part; all on together make one and a half times the mean."""
    ranks = torch.arange(1, num_chains + 1).to(x)
    return (x.mean() + 0.1) * ranks / ranks.sum()


def make() -> tuple[Callable[..., None], None]:
    """The model, and no guide: the states have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Earthquakes of magnitude 7 and more a year, 1900 to 2006, (107,)."""
    return poisson_hmm.load()


def simulate(length: int = 300, seed: int = 0) -> tuple[Tensor]:
    """A series of `length` counts drawn at `TRUTH`; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    probs, rates, chains = TRUTH["init"], [], torch.arange(2)
    for _ in range(length):
        z = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
        rates.append(TRUTH["base"] + (TRUTH["adds"] * z).sum())
        probs = TRUTH["trans"][chains, z]
    return (torch.poisson(torch.stack(rates), generator=generator),)
