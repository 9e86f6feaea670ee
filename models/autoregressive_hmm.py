"""An autoregressive hidden Markov model: in every regime, a line through the value before.

    z_1 ~ Categorical(init),    z_t | z_{t-1} = j  ~ Categorical(trans[j])                    t = 2 ... T
    x_t | x_{t-1}, z_t = k  ~ Normal(levels[k] + slopes[k] x_{t-1}, scales[k])                t = 1 ... T

given x_0. The interest rate of the US Federal Reserve has calm and stormy quarters, whose scales differ by a factor of
more than four. In `markov_switching` all regimes have one scale.

Source: Hamilton (1989), Econometrica 57, 357-384; Hamilton (1990), Journal of Econometrics 45, 39-70, whose EM this is.
Data: see `data/README.md`.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "fedfunds.csv"

# What `simulate` draws from.
TRUTH = {
    "init": torch.tensor([0.5, 0.5], dtype=torch.float64),
    "trans": torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64),
    "levels": torch.tensor([0.0, 2.0], dtype=torch.float64),
    "slopes": torch.tensor([0.8, -0.4], dtype=torch.float64),
    "scales": torch.tensor([0.3, 1.0], dtype=torch.float64),
}


def model(x: Tensor, num_states: int = 2) -> None:
    """Draw a series `x` (T + 1,) given its first value, sites `z_1, x_1, z_2, ...`.

    Parameters: `init` (K,) and the rows of `trans` (K, K) on the simplex; `levels` and `slopes` (K,); `scales` (K,),
    positive.
    """
    K = num_states
    init = pyro.param("init", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    trans = pyro.param("trans", x.new_full((K, K), 1 / K), constraint=constraints.simplex)
    levels = pyro.param("levels", x.new_zeros(K))
    slopes = pyro.param("slopes", x.new_ones(K))
    scales = pyro.param("scales", lambda: start_scales(x, K), constraint=constraints.positive)
    z = None
    for t in pyro.markov(range(1, len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(levels[z] + slopes[z] * x[t - 1], scales[z]), obs=x[t])


def start_scales(x: Tensor, num_states: int) -> Tensor:
    """The deviation of the steps, halved and doubled: what parts the states of a walk."""
    return x.diff().std() * torch.logspace(-1, 1, num_states, base=2.0).to(x)


def make() -> tuple[Callable[..., None], None]:
    """The model, and no guide: the states have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """The federal funds rate by quarter, third of 1954 to last of 2010, in percent, (226,)."""
    with DATA.open(newline="") as file:
        rates = [float(row["fedfunds"]) for row in csv.DictReader(file)]
    return (torch.tensor(rates, dtype=torch.float64),)


def simulate(length: int = 300, seed: int = 0) -> tuple[Tensor]:
    """A series of `length` values after a first zero, drawn at `TRUTH`; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(length, generator=generator, dtype=torch.float64)
    x, probs = [torch.zeros((), dtype=torch.float64)], TRUTH["init"]
    for step in noise:
        z = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
        x.append(TRUTH["levels"][z] + TRUTH["slopes"][z] * x[-1] + TRUTH["scales"][z] * step)
        probs = TRUTH["trans"][z]
    return (torch.stack(x),)
