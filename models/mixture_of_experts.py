"""A mixture of experts: which regression a datum follows depends on covariates of its own.

    z_n            ~ Categorical(softmax_k(sum_q covariates_{n,q} gate[q, k]))      n = 1 ... N
    y_n | z_n = k  ~ Poisson(exp(sum_p design_{n,p} coefs[k, p]))

    log p(y) = sum_n log sum_k p(z_n = k) Poisson(y_n; exp(design_n . coefs[k]))

Also known as a mixture with concomitant variables. The last component's column of the gate is zero:
only differences matter. Patents of 70 firms, by the log of what they spend on research, gated by
what part of sales that is, three components: -197.6750.

Source: Jacobs, Jordan, Nowlan & Hinton (1991), Neural Computation 3, 79-87; Jordan & Jacobs (1994),
Neural Computation 6, 181-214. Data: Wang, Cockburn & Puterman (1998), see `data/README.md`.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from models.poisson_regressions import start_coefs

__all__ = ["TRUTH", "experts", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "patent.csv"

# What `simulate` draws from.
TRUTH = {
    "gate": torch.tensor([[0.0, 0.5], [2.0, -2.0]], dtype=torch.float64),
    "coefs": torch.tensor([[2.0, 0.7], [0.5, 0.2], [1.0, -0.8]], dtype=torch.float64),
}


def model(y: Tensor, design: Tensor, covariates: Tensor, num_components: int = 3) -> Tensor:
    """Draw counts `y` (N,) given `design` (N, P) and `covariates` (N, Q); return components (N,).

    Parameters: `gate` (Q, K - 1), log odds against the last component; `coefs` (K, P).
    """
    K = num_components
    gate = pyro.param("gate", y.new_zeros(covariates.shape[-1], K - 1))
    return experts(y, design, pad(covariates @ gate, (0, 1)))


def experts(y: Tensor, design: Tensor, logits: Tensor) -> Tensor:
    """Draw the counts `y` (N,), given `design` (N, P) and the `logits` (N, K) of a gate."""
    coefs = pyro.param("coefs", lambda: start_coefs(y, design, logits.shape[-1]))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(logits=logits))
        pyro.sample("y", dist.Poisson((design * coefs[z]).sum(-1).exp()), obs=y)
    return z


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor, Tensor]:
    """Patents of 70 firms in 1976, (70,), the design 1, log(spending), and 1, spending over sales, (70, 2) each."""
    with DATA.open(newline="") as file:
        rows = [(float(row["Patents"]), float(row["lgRD"]), float(row["RDS"])) for row in csv.DictReader(file)]
    patents, spending, share = torch.tensor(rows, dtype=torch.float64).T
    ones = torch.ones_like(patents)
    return patents, torch.stack([ones, spending], dim=-1), torch.stack([ones, share], dim=-1)


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """`num` counts drawn at `TRUTH`, design and covariates (num, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    x, u = torch.randn(2, num, generator=generator, dtype=torch.float64)
    design, covariates = (torch.stack([torch.ones_like(v), v], dim=-1) for v in (x, u))
    probs = pad(covariates @ TRUTH["gate"], (0, 1)).softmax(-1)
    z = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
    rates = (design * TRUTH["coefs"][z]).sum(-1).exp()
    return torch.poisson(rates, generator=generator), design, covariates
