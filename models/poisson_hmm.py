"""A hidden Markov model of counts, with a free or a stationary start.

    z_1 ~ Categorical(init),    z_t | z_{t-1} = j  ~ Categorical(trans[j])      t = 2 ... T_b
    x_t | z_t = k  ~ Poisson(rates[k])

independently for the series b = 1 ... B, which share all parameters. In `stationary`, `init` is no parameter but the
law that `trans` keeps, init trans = init. Earthquakes of magnitude 7 and more in the world, year by year, have minus
log-likelihoods 342.3183, 329.4603 and 327.8316 with two to four stationary states, and 341.8787 and 328.5275 with two
and three free ones, which start in one state for certain.

Source: Zucchini & MacDonald (2009), *Hidden Markov Models for Time Series*, tables 4.1 and 4.2 (two and three
states) and section 6.1 (four), whose data these are, see `data/README.md`.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "simulate", "stationary", "stationary_law"]

DATA = Path(__file__).parent / "data" / "earthquakes.csv"

# What `simulate` draws from.
TRUTH = {
    "init": torch.tensor([0.5, 0.5], dtype=torch.float64),
    "trans": torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64),
    "rates": torch.tensor([2.0, 9.0], dtype=torch.float64),
}


def model(x: Tensor, lengths: Tensor | None = None, num_states: int = 2) -> None:
    """Draw counts `x` (T,) or (B, T), sites `z_0, x_0, z_1, ...` in plate "sequences".

    `lengths` (B,), integers in 1 ... T, says how much of each row counts; what lies beyond may be any count.
    Parameters: `init` (K,) and the rows of `trans` (K, K) on the simplex; `rates` (K,), positive.
    """
    K = num_states
    init = pyro.param("init", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    draw_chains(x, lengths, init, transitions(x, K))


def stationary(x: Tensor, lengths: Tensor | None = None, num_states: int = 2) -> None:
    """As `model`, from the law that the transitions keep; parameters `trans` and `rates`."""
    trans = transitions(x, num_states)
    draw_chains(x, lengths, stationary_law(trans), trans)


def draw_chains(x: Tensor, lengths: Tensor | None, init: Tensor, trans: Tensor) -> None:
    x = x if x.dim() == 2 else x.unsqueeze(0)
    B, T = x.shape
    lengths = torch.full((B,), T) if lengths is None else lengths
    used = torch.arange(T) < lengths.unsqueeze(-1)
    rates = pyro.param("rates", lambda: start_rates(x[used], len(init)), constraint=constraints.positive)
    with pyro.plate("sequences", B):
        z = None
        for t in pyro.markov(range(T)):
            with poutine.mask(mask=used[:, t]):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                pyro.sample(f"x_{t}", dist.Poisson(rates[z]), obs=x[:, t])


def transitions(x: Tensor, num_states: int) -> Tensor:
    """The parameter `trans`, which starts uniform."""
    K = num_states
    return pyro.param("trans", x.new_full((K, K), 1 / K), constraint=constraints.simplex)


def stationary_law(trans: Tensor) -> Tensor:
    """The law that `trans` (K, K) keeps, (K,): the solution of init (I - trans + 1) = 1, where 1 is all ones."""
    ones = torch.ones_like(trans)
    return torch.linalg.solve((torch.eye(len(trans)).to(trans) - trans + ones).mT, ones[0])


def start_rates(x: Tensor, num_states: int) -> Tensor:
    """Evenly spaced quantiles and a half: distinct, so states can part though `trans` starts uniform."""
    levels = (torch.arange(num_states, dtype=x.dtype) + 0.5) / num_states
    return x.quantile(levels) + 0.5


def make() -> tuple[Callable[..., None], None]:
    """The model with a free start, and no guide: the states have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Earthquakes a year, 1900 to 2006, (107,)."""
    with DATA.open(newline="") as file:
        counts = [float(row["count"]) for row in csv.DictReader(file)]
    return (torch.tensor(counts, dtype=torch.float64),)


def simulate(num: int = 20, length: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A ragged batch drawn at `TRUTH`: `x` (num, length), zero beyond each end, and `lengths`.

    The lengths are uniform on half of `length` to all of it; the global generator is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint((length + 1) // 2, length + 1, (num,), generator=generator)
    probs, counts = TRUTH["init"].expand(num, -1), []
    for _ in range(length):
        z = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
        counts.append(torch.poisson(TRUTH["rates"][z], generator=generator))
        probs = TRUTH["trans"][z]
    return torch.stack(counts, dim=-1) * (torch.arange(length) < lengths.unsqueeze(-1)), lengths
