"""A mixture of linear regressions: which line a point belongs to is not known.

    z_n            ~ Categorical(weights)                                   n = 1 ... N
    y_n | z_n = k  ~ Normal(sum_p design_{n,p} coefs[k, p], scales[k])

    log p(y) = sum_n log sum_k weights[k] N(y_n; design_n . coefs[k], scales[k]^2)

The first column of the design is the intercept's. The simulated data of flexmix, a line and a
parabola, have their maximum in the interior at -642.5320; flexmix's own -642.5452 falls short of it,
since it divides the residual variance by n - p.

Source: DeSarbo & Cron (1988), Journal of Classification 5, 249-282; Leisch (2004), Journal of
Statistical Software 11(8), which also has the data.
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

DATA = Path(__file__).parent / "data" / "NPreg.csv"

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.5, 0.5], dtype=torch.float64),
    "coefs": torch.tensor([[0.0, 1.0], [3.0, -1.0]], dtype=torch.float64),
    "scales": torch.tensor([0.5, 0.8], dtype=torch.float64),
}


def model(y: Tensor, design: Tensor, num_components: int = 2) -> Tensor:
    """Draw the responses `y` (N,) given `design` (N, P); return their components, of shape (N,).

    Parameters: `weights` (K,) on the simplex; `coefs` (K, P); `scales` (K,), positive.
    """
    K = num_components
    weights = pyro.param("weights", y.new_full((K,), 1 / K), constraint=constraints.simplex)
    coefs = pyro.param("coefs", lambda: start_coefs(y, design, K))
    scales = pyro.param("scales", lambda: y.std().expand(K).clone(), constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal((design * coefs[z]).sum(-1), scales[z]), obs=y)
    return z


def start_coefs(y: Tensor, design: Tensor, num_components: int) -> Tensor:
    """Least squares on all data, the intercepts apart by one deviation of the residuals."""
    coef = torch.linalg.lstsq(design, y.unsqueeze(-1)).solution.squeeze(-1)
    coefs = coef.repeat(num_components, 1)
    coefs[:, 0] += torch.linspace(-1, 1, num_components).to(y) * (y - design @ coef).std()
    return coefs


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """The responses `yn` (200,) and the design 1, x, x^2, (200, 3)."""
    with DATA.open(newline="") as file:
        rows = [(float(row["x"]), float(row["yn"])) for row in csv.DictReader(file)]
    x, y = torch.tensor(rows, dtype=torch.float64).T
    return y, torch.stack([torch.ones_like(x), x, x.square()], dim=-1)


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` responses drawn at `TRUTH`, and their design (num, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    noise, x = torch.randn(2, num, generator=generator, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], dim=-1)
    return (design * TRUTH["coefs"][z]).sum(-1) + TRUTH["scales"][z] * noise, design
