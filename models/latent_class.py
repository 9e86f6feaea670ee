"""Latent class analysis of answers with any number of levels, some of them missing.

    z_n                ~ Categorical(weights)               n = 1 ... N people
    x_{n,j} | z_n = k  ~ Categorical(probs_j[k])            j = 1 ... J items, item j with L_j levels

    log p(x) = sum_n log sum_k weights[k] prod_{j answered by n} probs_j[k, x_{n,j}]

An answer that is missing at random drops out of its person's product, and no row is discarded. Of
the 2201 on board the Titanic, two classes describe class, sex, age and survival.

Source: Goodman (1974), Biometrika 61, 215-231; Linzer & Lewis (2011), Journal of Statistical
Software 42(10). Data: Dawson (1995), see `data/README.md`.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "titanic.csv"
LEVELS = (("1st", "2nd", "3rd", "Crew"), ("Male", "Female"), ("Child", "Adult"), ("No", "Yes"))

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.4, 0.6], dtype=torch.float64),
    "probs_0": torch.tensor([[0.1, 0.2, 0.1, 0.6], [0.3, 0.5, 0.1, 0.1]], dtype=torch.float64),
    "probs_1": torch.tensor([[0.1, 0.9], [0.7, 0.3]], dtype=torch.float64),
    "probs_2": torch.tensor([[0.2, 0.8], [0.6, 0.4]], dtype=torch.float64),
    "probs_3": torch.tensor([[0.3, 0.7], [0.9, 0.1]], dtype=torch.float64),
}


def model(answers: Tensor, num_levels: Sequence[int] = (4, 2, 2, 2), num_classes: int = 2) -> Tensor:
    """Draw the `answers` (N, J), integers in 0 ... L_j - 1, or -1 where one is missing.

    Returns the classes, integers of shape (N,). Parameters: `weights` (K,) and, for every item j,
    the rows of `probs_j` (K, L_j) on the simplex.
    """
    K = num_classes
    weights = pyro.param("weights", torch.full((K,), 1 / K, dtype=torch.float64), constraint=constraints.simplex)
    probs = [
        pyro.param(f"probs_{j}", start_probs(answers, j, L, K), constraint=constraints.simplex)
        for j, L in enumerate(num_levels)
    ]
    with pyro.plate("people", len(answers)):
        z = pyro.sample("z", dist.Categorical(weights))
        for j, given in enumerate(answers.T):
            item = dist.Categorical(probs[j][z]).mask(given >= 0)
            pyro.sample(f"x_{j}", item, obs=given.clamp(min=0))
    return z


def start_probs(answers: Tensor, item: int, num_levels: int, num_classes: int) -> Tensor:
    """Shares of levels among people grouped by the sum of their answers, none of them zero."""
    groups = answers[answers.sum(-1).argsort(stable=True)].tensor_split(num_classes)
    levels = torch.arange(num_levels)
    counts = torch.stack([(group[:, item, None] == levels).double().sum(0) + 1 for group in groups])
    return counts / counts.sum(-1, keepdim=True)


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Class, sex, age and survival of those on the Titanic, as indices into `LEVELS`, (2201, 4)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    codes = torch.tensor([[LEVELS[j].index(value) for j, value in enumerate(row[:-1])] for row in rows])
    return (codes.repeat_interleave(torch.tensor([int(row[-1]) for row in rows]), dim=0),)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor]:
    """`num` rows drawn at `TRUTH`, (num, 4), a tenth of the answers missing; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    draws = [torch.multinomial(TRUTH[f"probs_{j}"][z], 1, generator=generator) for j in range(4)]
    missing = torch.rand(num, 4, generator=generator) < 0.1
    return (torch.cat(draws, dim=-1).masked_fill(missing, -1),)
