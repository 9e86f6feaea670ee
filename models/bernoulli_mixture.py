"""A mixture of independent Bernoullis: latent class analysis of right-or-wrong items.

    z_n                 ~ Categorical(weights)          n = 1 ... N people
    x_{n,j} | z_n = k   ~ Bernoulli(probs[k, j])        j = 1 ... J items

    log p(x) = sum_n log sum_k weights[k] prod_j probs[k,j]^x_{n,j} (1 - probs[k,j])^(1 - x_{n,j})

Within a class the items are independent; all association between them comes from the class.
Estimates often lie on the boundary (a class that always answers an item right). The maximum for
two classes of the data here is -2467.4055.

Source: Lazarsfeld & Henry (1968), *Latent Structure Analysis*; Goodman (1974), Biometrika 61,
215-231. Data: Bock & Lieberman (1970), see `data/README.md`.
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

DATA = Path(__file__).parent / "data" / "lsat6.csv"

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.35, 0.65], dtype=torch.float64),
    "probs": torch.tensor([[0.1, 0.2, 0.15, 0.3, 0.1, 0.25], [0.9, 0.7, 0.8, 0.85, 0.6, 0.75]], dtype=torch.float64),
}


def model(x: Tensor, num_classes: int = 2) -> Tensor:
    """Draw the rows of `x` (N, J), zeros and ones; return their classes, integers of shape (N,).

    Parameters: `weights` (K,) on the simplex; `probs` (K, J) in [0, 1], the chance of a one.
    """
    K = num_classes
    weights = pyro.param("weights", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    probs = pyro.param("probs", lambda: start_probs(x, K), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)
    return z


def start_probs(x: Tensor, num_classes: int) -> Tensor:
    """Item means of rows grouped by their number of ones, kept off 0 and 1 by Laplace's rule."""
    groups = x[x.sum(-1).argsort(stable=True)].tensor_split(num_classes)
    return torch.stack([(group.sum(0) + 1) / (len(group) + 2) for group in groups])


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Five items of the Law School Admission Test, section 6: one row a person, (1000, 5)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    patterns = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
    return (patterns[:, :-1].repeat_interleave(patterns[:, -1].long(), dim=0),)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor]:
    """`num` rows drawn at `TRUTH`, (num, 6); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    return (torch.bernoulli(TRUTH["probs"][z], generator=generator),)
