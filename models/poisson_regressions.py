"""A mixture of Poisson regressions: counts that several log-linear laws have made.

    z_n            ~ Categorical(weights)                                  n = 1 ... N
    y_n | z_n = k  ~ Poisson(exp(sum_p design_{n,p} coefs[k, p]))

    log p(y) = sum_n log sum_k weights[k] Poisson(y_n; exp(design_n . coefs[k]))

The first column of the design is the intercept's. Patents of 70 firms by the log of what they spend
on research, three components: -203.5332, one of many local maxima.

Source: Wang, Cockburn & Puterman (1998), Journal of Business & Economic Statistics 16, 27-41, whose
data these are, see `data/README.md`; Grün & Leisch (2008), Journal of Statistical Software 28(4).
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

DATA = Path(__file__).parent / "data" / "patent.csv"

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64),
    "coefs": torch.tensor([[2.0, 0.7], [0.5, 0.2], [1.0, -0.8]], dtype=torch.float64),
}


def model(y: Tensor, design: Tensor, num_components: int = 3) -> Tensor:
    """Draw the counts `y` (N,) given `design` (N, P); return their components, of shape (N,).

    Parameters: `weights` (K,) on the simplex; `coefs` (K, P), on the scale of log counts.
    """
    K = num_components
    weights = pyro.param("weights", y.new_full((K,), 1 / K), constraint=constraints.simplex)
    coefs = pyro.param("coefs", lambda: start_coefs(y, design, K))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Poisson((design * coefs[z]).sum(-1).exp()), obs=y)
    return z


def start_coefs(y: Tensor, design: Tensor, num_components: int) -> Tensor:
    """Least squares for log(y + 1/2), the intercepts apart by one deviation of the residuals."""
    logs = (y + 0.5).log()
    coef = torch.linalg.lstsq(design, logs.unsqueeze(-1)).solution.squeeze(-1)
    coefs = coef.repeat(num_components, 1)
    coefs[:, 0] += torch.linspace(-1, 1, num_components).to(y) * (logs - design @ coef).std()
    return coefs


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """Patents of 70 firms in 1976, (70,), and the design 1, log(research spending), (70, 2)."""
    with DATA.open(newline="") as file:
        rows = [(float(row["Patents"]), float(row["lgRD"])) for row in csv.DictReader(file)]
    patents, spending = torch.tensor(rows, dtype=torch.float64).T
    return patents, torch.stack([torch.ones_like(spending), spending], dim=-1)


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` counts drawn at `TRUTH`, and their design (num, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    x = torch.randn(num, generator=generator, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], dim=-1)
    return torch.poisson((design * TRUTH["coefs"][z]).sum(-1).exp(), generator=generator), design
