"""A hidden Markov model of symbols, with a free or a stationary start.

    z_1 ~ Categorical(init),    z_t | z_{t-1} = j  ~ Categorical(trans[j])      t = 2 ... T_b
    x_t | z_t = k  ~ Categorical(probs[k])

independently for the series b = 1 ... B, which share all parameters. In `stationary`, `init` is no parameter but the
law that `trans` keeps. Old Faithful's waits in four classes reach -330.8097 with two states (R's depmixS4), and its
eruptions, short or long, -127.3110 with two stationary states. Either maximum has probabilities of zero.

Source: Rabiner (1989), Proc. IEEE 77, 257-286; Zucchini & MacDonald (2009), *Hidden Markov Models for Time Series*,
section 10.2. Data: Azzalini & Bowman (1990), see `data/README.md`.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from models import gaussian_hmm
from models.poisson_hmm import stationary_law, transitions

__all__ = ["BOUNDS", "TRUTH", "load", "make", "model", "simulate", "stationary"]

BOUNDS = torch.tensor([60.0, 75.0, 85.0], dtype=torch.float64)  # minutes, between classes of waits

# What `simulate` draws from.
TRUTH = {
    "init": torch.tensor([0.5, 0.5], dtype=torch.float64),
    "trans": torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64),
    "probs": torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64),
}


def model(x: Tensor, lengths: Tensor | None = None, num_states: int = 2) -> None:
    """Draw symbols `x` (T,) or (B, T), integers from 0, sites `z_0, x_0, z_1, ...` in plate "sequences".

    `lengths` (B,), integers in 1 ... T, says how much of each row counts; what lies beyond may be any symbol.
    Parameters, rows on the simplex: `init` (K,), `trans` (K, K), `probs` (K, S).
    """
    K = num_states
    init = pyro.param("init", torch.full((K,), 1 / K, dtype=torch.float64), constraint=constraints.simplex)
    draw_chains(x, lengths, init, transitions(init, K))


def stationary(x: Tensor, lengths: Tensor | None = None, num_states: int = 2) -> None:
    """As `model`, from the law that the transitions keep; parameters `trans` and `probs`."""
    trans = transitions(torch.zeros((), dtype=torch.float64), num_states)
    draw_chains(x, lengths, stationary_law(trans), trans)


def draw_chains(x: Tensor, lengths: Tensor | None, init: Tensor, trans: Tensor) -> None:
    x = x if x.dim() == 2 else x.unsqueeze(0)
    B, T = x.shape
    lengths = torch.full((B,), T) if lengths is None else lengths
    used = torch.arange(T) < lengths.unsqueeze(-1)
    probs = pyro.param("probs", lambda: start_probs(x[used], len(init)), constraint=constraints.simplex)
    with pyro.plate("sequences", B):
        z = None
        for t in pyro.markov(range(T)):
            with poutine.mask(mask=used[:, t]):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                pyro.sample(f"x_{t}", dist.Categorical(probs[z]), obs=x[:, t])


def start_probs(x: Tensor, num_states: int) -> Tensor:
    """The shares of symbols, tilted to the low ones in the first state and to the high ones in the last."""
    counts = x.bincount().double() + 0.5
    ends = torch.linspace(-1, 1, num_states, dtype=torch.float64)
    return (counts.log() + torch.outer(ends, torch.linspace(-1, 1, len(counts), dtype=torch.float64))).softmax(-1)


def make() -> tuple[Callable[..., None], None]:
    """The model with a free start, and no guide: the states have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Old Faithful's waits in order of time, in classes cut at `BOUNDS`, (299,)."""
    (waits,) = gaussian_hmm.load()
    return (torch.bucketize(waits, BOUNDS, right=True),)


def simulate(num: int = 20, length: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A ragged batch drawn at `TRUTH`: `x` (num, length), zero beyond each end, and `lengths`.

    The lengths are uniform on half of `length` to all of it; the global generator is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint((length + 1) // 2, length + 1, (num,), generator=generator)
    probs, symbols = TRUTH["init"].expand(num, -1), []
    for _ in range(length):
        z = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
        symbols.append(torch.multinomial(TRUTH["probs"][z], 1, generator=generator).squeeze(-1))
        probs = TRUTH["trans"][z]
    return torch.stack(symbols, dim=-1) * (torch.arange(length) < lengths.unsqueeze(-1)), lengths
