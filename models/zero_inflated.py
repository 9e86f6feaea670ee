"""Counts with more zeros than their law allows: some data are zero whatever the rate.

    absent_n            ~ Bernoulli(logits = design_n . zero_coefs)        n = 1 ... N
    y_n | absent_n = 0  ~ Poisson(m_n),   m_n = exp(design_n . count_coefs)
    y_n | absent_n = 1  = 0

    log p(y) = sum_n log(p_n [y_n = 0] + (1 - p_n) f(y_n; m_n)),   p_n = P(absent_n = 1)

With negative binomial counts, f has mean m_n and variance m_n + m_n^2 / size. The first column of
the design is the intercept's. Articles of 915 biochemists by sex, marriage, children, prestige and
mentor: -1604.7729 for Poisson, -1549.9909 for negative binomial counts (R's pscl, statsmodels).

Source: Lambert (1992), Technometrics 34, 1-14; Zeileis, Kleiber & Jackman (2008), Journal
of Statistical Software 27(8). Data: Long (1990), see `data/README.md`.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "negative_binomial", "poisson", "simulate"]

DATA = Path(__file__).parent / "data" / "bioChemists.csv"

# What `simulate` draws from.
TRUTH = {
    "zero_coefs": torch.tensor([-0.5, 1.0], dtype=torch.float64),
    "count_coefs": torch.tensor([1.0, 0.6], dtype=torch.float64),
}

Counts = Callable[[Tensor], dist.TorchDistribution]


def poisson(mean: Tensor) -> dist.TorchDistribution:
    """Poisson counts; a mean of zero is zero for certain."""
    return dist.Poisson(mean)


def negative_binomial(mean: Tensor) -> dist.TorchDistribution:
    """Negative binomial counts of one size, positive; a mean of zero is zero for certain."""
    size = pyro.param("size", mean.new_ones(()), constraint=constraints.positive)
    return dist.NegativeBinomial(size, probs=mean / (mean + size))


def model(y: Tensor, design: Tensor, counts: Counts = poisson) -> Tensor:
    """Draw the counts `y` (N,) given `design` (N, P); return which are absent, zeros and ones (N,).

    Parameters: `zero_coefs` (P,), log odds of being absent; `count_coefs` (P,), log means; and
    those of `counts`.
    """
    zero_coefs = pyro.param("zero_coefs", y.new_zeros(design.shape[-1]))
    count_coefs = pyro.param("count_coefs", lambda: start_coefs(y, design))
    with pyro.plate("data", len(y)):
        absent = pyro.sample("absent", dist.Bernoulli(logits=design @ zero_coefs))
        # Not (1 - absent) * mean: that of a positive count has a gradient of zero times infinity.
        mean = torch.where(absent == 1, 0.0, (design @ count_coefs).exp())
        pyro.sample("y", counts(mean), obs=y)
    return absent


def start_coefs(y: Tensor, design: Tensor) -> Tensor:
    """The log mean of the positive counts for the intercept, no slopes."""
    coefs = y.new_zeros(design.shape[-1])
    coefs[0] = y[y > 0].mean().log()
    return coefs


def make(counts: Counts = poisson) -> tuple[Callable[..., Tensor], None]:
    """The model with one of the laws of counts, and no guide: `absent` can be summed out."""
    return partial(model, counts=counts), None


def load() -> tuple[Tensor, Tensor]:
    """Articles of biochemists, (915,), and the design 1, woman, married, children, prestige, mentor's, (915, 6)."""
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    design = [
        [1.0, row["fem"] == "Women", row["mar"] == "Married", *(float(row[name]) for name in ("kid5", "phd", "ment"))]
        for row in rows
    ]
    y = torch.tensor([float(row["art"]) for row in rows], dtype=torch.float64)
    return y, torch.tensor(design, dtype=torch.float64)


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` counts drawn at `TRUTH`, and their design (num, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, generator=generator, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], dim=-1)
    absent = torch.bernoulli((design @ TRUTH["zero_coefs"]).sigmoid(), generator=generator)
    return torch.poisson((1 - absent) * (design @ TRUTH["count_coefs"]).exp(), generator=generator), design
