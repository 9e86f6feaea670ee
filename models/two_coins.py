"""Two coins in a bag: the smallest EM there is.

    z_n            ~ Categorical(1/2, 1/2)                which coin was tossed, n = 1 ... N
    x_n | z_n = k  ~ Binomial(tosses_n, probs[k])         heads

    log p(x) = sum_n log sum_k 1/2 C(tosses_n, x_n) probs[k]^x_n (1 - probs[k])^(tosses_n - x_n)

The weights are known, so there is no parameter for them. From the paper's start (0.6, 0.5) ten
iterations lead to about (0.80, 0.52); the maximum is -9.7969 at (.79679, .51958).

Source: Do & Batzoglou (2008), *What is the expectation maximization algorithm?*, Nature
Biotechnology 26, 897-899, figure 1, which also has the data.
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

DATA = Path(__file__).parent / "data" / "coins.csv"

# What `simulate` draws from.
TRUTH = {"probs": torch.tensor([0.8, 0.45], dtype=torch.float64)}


def model(heads: Tensor, tosses: Tensor) -> Tensor:
    """Draw the `heads` (N,) among so many `tosses` (N,); return the coins, integers of shape (N,).

    Parameters: `probs` (2,) in [0, 1], either coin's chance of heads.
    """
    probs = pyro.param("probs", heads.new_tensor([0.6, 0.5]), constraint=constraints.unit_interval)
    with pyro.plate("data", len(heads)):
        z = pyro.sample("z", dist.Categorical(heads.new_tensor([0.5, 0.5])))
        pyro.sample("heads", dist.Binomial(tosses, probs[z]), obs=heads)
    return z


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """Heads in five sets of ten tosses, (5,), and the tens."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    heads, tosses = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64).T
    return heads, tosses


def simulate(num: int = 100, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` sets of 5 to 15 tosses at `TRUTH`: heads and tosses; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(2, (num,), generator=generator)
    tosses = torch.randint(5, 16, (num,), generator=generator).double()
    return torch.binomial(tosses, TRUTH["probs"][z], generator=generator), tosses
