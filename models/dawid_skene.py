"""Raters who err each in their own way: the true class is latent, every rater has a confusion matrix.

    y_i                        ~ Categorical(prevalence)          the truth, i = 1 ... N items
    x_{i,r} | y_i = k, a_{i,r} ~ Categorical(confusion[a_{i,r}, k])   r = 1 ... R_i ratings

    log p(x) = sum_i log sum_k prevalence[k] prod_r confusion[a_{i,r}, k, x_{i,r}]

Rating r of item i is by rater a_{i,r}: raters may rate an item several times, or not at all. The
psychiatrists of the data are unnamed and differ from patient to patient, so they share one matrix.

Source: Dawid & Skene (1979), Applied Statistics 28, 20-28, equations 2.3-2.5. Data: Fleiss (1971),
see `data/README.md`.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "diagnoses.csv"

# What `simulate` draws from: three raters, five classes.
TRUTH = {
    "prevalence": torch.tensor([0.15, 0.2, 0.2, 0.25, 0.2], dtype=torch.float64),
    "confusion": torch.stack([(1 - right) / 5 + right * torch.eye(5) for right in (0.9, 0.7, 0.5)]).double(),
}


def model(ratings: Tensor, raters: Tensor, num_classes: int = 5, num_raters: int = 3) -> Tensor:
    """Draw the `ratings` (N, R), integers in 0 ... C - 1, or -1 beyond an item's last; return the truths (N, 1).

    `raters` (N, R), integers in 0 ... A - 1, says whose they are. Parameters: `prevalence` (C,) and
    the rows of `confusion` (A, C, C), indexed by rater, truth and rating, on the simplex.
    """
    A, C = num_raters, num_classes
    uniform = torch.full((C,), 1 / C, dtype=torch.float64)
    prevalence = pyro.param("prevalence", uniform, constraint=constraints.simplex)
    start = (0.3 * uniform + 0.7 * torch.eye(C, dtype=torch.float64)).repeat(A, 1, 1)  # mostly right
    confusion = pyro.param("confusion", start, constraint=constraints.simplex)
    with pyro.plate("items", len(ratings), dim=-2):
        truth = pyro.sample("truth", dist.Categorical(prevalence))
        with pyro.plate("ratings", ratings.shape[-1], dim=-1), poutine.mask(mask=ratings >= 0):
            pyro.sample("rating", dist.Categorical(Vindex(confusion)[raters, truth]), obs=ratings.clamp(min=0))
    return truth


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: the truths have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """Six diagnoses for each of 30 patients, (30, 6), by raters taken for alike, all number 0."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    ratings = torch.tensor([[int(value) for value in row] for row in rows]) - 1
    return ratings, torch.zeros_like(ratings)


def simulate(num: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two to four ratings of `num` items at `TRUTH`, and their raters; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.multinomial(TRUTH["prevalence"], num, replacement=True, generator=generator)
    raters = torch.randint(3, (num, 4), generator=generator)
    probs = TRUTH["confusion"][raters, truth.unsqueeze(-1)]
    ratings = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).reshape(num, 4)
    given = torch.arange(4) < torch.randint(2, 5, (num, 1), generator=generator)
    return ratings.masked_fill(~given, -1), raters
