"""A mixture of Poissons: counts with more spread than one rate allows.

    z_n            ~ Categorical(weights)      n = 1 ... N
    x_n | z_n = k  ~ Poisson(rates[k])

    log p(x) = sum_n log sum_k weights[k] rates[k]^x_n exp(-rates[k]) / x_n!

Hasselblad's death notices are the textbook case of slow EM: the two rates are close, the
likelihood is a flat ridge, and a stopping rule on the last gain alone stops far too early. Maximum
for two components: -1989.9459 at weights (.3599, .6401) and rates (1.256, 2.663).

Source: Hasselblad (1969), JASA 64, 1459-1471; Titterington, Smith & Makov (1985), *Statistical
Analysis of Finite Mixture Distributions*. Data: Schilling (1947), see `data/README.md`.
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

DATA = Path(__file__).parent / "data" / "deaths_times.csv"

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.4, 0.6], dtype=torch.float64),
    "rates": torch.tensor([1.0, 6.0], dtype=torch.float64),
}


def model(x: Tensor, num_components: int = 2) -> Tensor:
    """Draw the counts `x` (N,), whole numbers from 0; return their components, of shape (N,).

    Parameters: `weights` (K,) on the simplex; `rates` (K,), positive.
    """
    K = num_components
    weights = pyro.param("weights", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    rates = pyro.param("rates", lambda: start_rates(x, K), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)
    return z


def start_rates(x: Tensor, num_components: int) -> Tensor:
    """Evenly spaced rates whose mean is that of the counts: (1/2, 3/2) of it for two components."""
    steps = torch.arange(num_components, dtype=x.dtype)
    return x.mean() * (2 * steps + 1) / num_components


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Death notices of women of 80 and over in The Times, one count a day, (1096,)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    table = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
    return (table[:, 0].repeat_interleave(table[:, 1].long()),)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor]:
    """`num` counts drawn at `TRUTH`, (num,); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    return (torch.poisson(TRUTH["rates"][z], generator=generator),)
