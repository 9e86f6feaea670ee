"""A hidden Markov model with Gaussian observations, for one series or a ragged batch.

    z_1 ~ Categorical(init),    z_t | z_{t-1} = j  ~ Categorical(trans[j])      t = 2 ... T_b
    x_t | z_t = k  ~ Normal(locs[k], scales[k])

independently for the series b = 1 ... B, which share all parameters. The maximum for Old
Faithful's waits with two states is -1092.3995 (R's depmixS4): a short wait is always followed by a
long one, so `init` and `trans` lie on the boundary there. Ties in the data let a state collapse;
the value is the highest without one.

Source: Rabiner (1989), Proc. IEEE 77, 257-286; Zucchini, MacDonald & Langrock (2016), *Hidden
Markov Models for Time Series*, chapter 2. Data: Azzalini & Bowman (1990), see `data/README.md`.
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

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "geyser.csv"

# What `simulate` draws from.
TRUTH = {
    "init": torch.tensor([0.5, 0.5], dtype=torch.float64),
    "trans": torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64),
    "locs": torch.tensor([-1.0, 2.0], dtype=torch.float64),
    "scales": torch.tensor([0.5, 1.0], dtype=torch.float64),
}


def model(x: Tensor, lengths: Tensor | None = None, num_states: int = 2) -> None:
    """Draw a series `x` (T,) or a batch (B, T), sites `z_0, x_0, z_1, ...` in plate "sequences".

    `lengths` (B,), integers in 1 ... T, says how much of each row counts; what lies beyond may be
    any finite number. Parameters: `init` (K,) and the rows of `trans` (K, K) on the simplex;
    `locs` (K,); `scales` (K,), positive.
    """
    K = num_states
    x = x if x.dim() == 2 else x.unsqueeze(0)
    B, T = x.shape
    lengths = torch.full((B,), T) if lengths is None else lengths
    used = torch.arange(T) < lengths.unsqueeze(-1)

    init = pyro.param("init", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    trans = pyro.param("trans", x.new_full((K, K), 1 / K), constraint=constraints.simplex)
    locs = pyro.param("locs", lambda: start_locs(x[used], K))
    scales = pyro.param("scales", lambda: x[used].std().expand(K).clone(), constraint=constraints.positive)
    with pyro.plate("sequences", B):
        z = None
        for t in pyro.markov(range(T)):
            with poutine.mask(mask=used[:, t]):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], scales[z]), obs=x[:, t])


def start_locs(x: Tensor, num_states: int) -> Tensor:
    """Evenly spaced quantiles: distinct, so states can part though `trans` starts uniform."""
    levels = (torch.arange(num_states, dtype=x.dtype) + 0.5) / num_states
    return x.quantile(levels)


def make() -> tuple[Callable[..., None], None]:
    """The model, and no guide: the states have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Old Faithful's waits in order of time, in minutes, (299,)."""
    with DATA.open(newline="") as file:
        waits = [float(row["waiting"]) for row in csv.DictReader(file)]
    return (torch.tensor(waits, dtype=torch.float64),)


def simulate(num: int = 20, length: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A ragged batch drawn at `TRUTH`: `x` (num, length), zero beyond each end, and `lengths`.

    The lengths are uniform on half of `length` to all of it; the global generator is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint((length + 1) // 2, length + 1, (num,), generator=generator)
    probs, states = TRUTH["init"].expand(num, -1), []
    for _ in range(length):
        states.append(torch.multinomial(probs, 1, generator=generator).squeeze(-1))
        probs = TRUTH["trans"][states[-1]]
    z = torch.stack(states, dim=-1)
    noise = torch.randn(num, length, generator=generator, dtype=torch.float64)
    x = TRUTH["locs"][z] + TRUTH["scales"][z] * noise
    return x * (torch.arange(length) < lengths.unsqueeze(-1)), lengths
