"""A mixture of multinomials: rows of counts over J kinds, as in texts, baskets and ballots.

    z_n            ~ Categorical(weights)                       n = 1 ... N
    x_n | z_n = k  ~ Multinomial(sum_j x_{n,j}, probs[k])

    log p(x) = sum_n log sum_k weights[k] (sum_j x_{n,j})! prod_j probs[k,j]^x_{n,j} / x_{n,j}!

The totals differ from row to row and carry no information on the class. Ten brands of margarine
bought by 516 households, two classes: -4673.4526, multinomial coefficients included; the smaller
class never buys brand 10. Many starts end at lower maxima, that of the model among them.

Source: Titterington, Smith & Makov (1985), *Statistical Analysis of Finite Mixture Distributions*;
Nigam, McCallum, Thrun & Mitchell (2000), Machine Learning 39, 103-134. Data: see `data/README.md`.
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

DATA = Path(__file__).parent / "data" / "margarine_counts.csv"

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.6, 0.4], dtype=torch.float64),
    "probs": torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]], dtype=torch.float64),
}


def model(x: Tensor, num_classes: int = 2) -> Tensor:
    """Draw the counts `x` (N, J), whole numbers from 0; return the classes of rows, of shape (N,).

    Parameters: `weights` (K,) and the rows of `probs` (K, J) on the simplex.
    """
    K = num_classes
    weights = pyro.param("weights", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    probs = pyro.param("probs", lambda: start_probs(x, K), constraint=constraints.simplex)
    largest = int(x.sum(-1).max())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        # Pyro takes one total for all rows; the density has that of each row, from its counts.
        pyro.sample("x", dist.Multinomial(largest, probs[z]), obs=x)
    return z


def start_probs(x: Tensor, num_classes: int) -> Tensor:
    """Pooled shares of rows grouped by the share of the commonest kind; no share starts at zero."""
    share = x[:, x.sum(0).argmax()] / x.sum(-1)
    groups = x[share.argsort(stable=True)].tensor_split(num_classes)
    return torch.stack([(group.sum(0) + 1) / (group.sum() + x.shape[-1]) for group in groups])


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Purchases of ten brands of margarine, one row a household, (516, 10)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return (torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64),)


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor]:
    """`num` rows of 3 to 9 counts drawn at `TRUTH`, (num, 4); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    draws = torch.multinomial(TRUTH["probs"][z], 9, replacement=True, generator=generator)
    totals = torch.randint(3, 10, (num, 1), generator=generator)
    used = (torch.arange(9) < totals).double()
    return (torch.zeros(num, 4, dtype=torch.float64).scatter_add_(1, draws, used),)
