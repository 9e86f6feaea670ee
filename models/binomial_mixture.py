"""A mixture of binomials: successes in a known number of trials, with more spread than one chance allows.

    z_n            ~ Categorical(weights)                 n = 1 ... N
    x_n | z_n = k  ~ Binomial(totals_n, probs[k])

    log p(x) = sum_n log sum_k weights[k] C(totals_n, x_n) probs[k]^x_n (1 - probs[k])^(totals_n - x_n)

Boys in families with twelve children in Saxony: the spread exceeds the binomial's by a little, the
two chances are close, and EM is slow. The maximum for two components is -12492.4062, at weights
(.7200, .2800) and chances (.4814, .6164).

Source: Titterington, Smith & Makov (1985), *Statistical Analysis of Finite Mixture Distributions*;
Teicher (1963) on when it is identified: totals of 2 K - 1 or more. Data: Geissler
(1889), see `data/README.md`.
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

DATA = Path(__file__).parent / "data" / "saxony.csv"
CHILDREN = 12

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.3, 0.7], dtype=torch.float64),
    "probs": torch.tensor([0.2, 0.6], dtype=torch.float64),
}


def model(x: Tensor, totals: Tensor, num_components: int = 2) -> Tensor:
    """Draw the successes `x` (N,), from 0 to `totals` (N,); return their components, of shape (N,).

    Parameters: `weights` (K,) on the simplex; `probs` (K,) in [0, 1], the chance of a success.
    """
    K = num_components
    weights = pyro.param("weights", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    probs = pyro.param("probs", lambda: start_probs(x, totals, K), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Binomial(totals, probs[z]), obs=x)
    return z


def start_probs(x: Tensor, totals: Tensor, num_components: int) -> Tensor:
    """Pooled shares of data grouped by their own share, kept off 0 and 1 by Laplace's rule."""
    order = (x / totals).argsort(stable=True)
    groups = zip(x[order].tensor_split(num_components), totals[order].tensor_split(num_components), strict=True)
    return torch.stack([(some.sum() + 1) / (total.sum() + 2) for some, total in groups])


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """Boys among twelve children, one count a family, (6115,), and the twelves."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    table = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
    males = table[:, 0].repeat_interleave(table[:, 1].long())
    return males, torch.full_like(males, CHILDREN)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` counts out of 8 to 12 drawn at `TRUTH`, and those totals; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    totals = torch.randint(8, 13, (num,), generator=generator).double()
    return torch.binomial(totals, TRUTH["probs"][z], generator=generator), totals
