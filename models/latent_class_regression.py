"""Latent classes that covariates make more or less likely.

    z_n                ~ Categorical(softmax_k(sum_p covariates_{n,p} gate[p, k]))   n = 1 ... N
    x_{n,j} | z_n = k  ~ Categorical(probs_j[k])                                     j = 1 ... J

    log p(x) = sum_n log sum_k p(z_n = k) prod_j probs_j[k, x_{n,j}]

The last class's column of the gate is zero: only differences matter. Estimating classes and
coefficients together avoids the bias of classifying first. How 601 readers rate their marriage,
whether they are religious and whether they had affairs, by sex, years married and children.

Source: Dayton & Macready (1988), JASA 83, 173-178; Bandeen-Roche et al. (1997), JASA 92,
1375-1386. Data: Fair (1978), see `data/README.md`.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

from models.latent_class import start_probs

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "affairs.csv"

# What `simulate` draws from.
TRUTH = {
    "gate": torch.tensor([[0.3], [1.0]], dtype=torch.float64),
    "probs_0": torch.tensor([[0.1, 0.1, 0.1, 0.3, 0.4], [0.3, 0.3, 0.2, 0.1, 0.1]], dtype=torch.float64),
    "probs_1": torch.tensor([[0.1, 0.1, 0.2, 0.3, 0.3], [0.2, 0.3, 0.3, 0.1, 0.1]], dtype=torch.float64),
    "probs_2": torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64),
}


def model(answers: Tensor, covariates: Tensor, num_levels: Sequence[int] = (5, 5, 2), num_classes: int = 2) -> Tensor:
    """Draw the `answers` (N, J), integers in 0 ... L_j - 1, given `covariates` (N, P).

    Returns the classes, integers of shape (N,). Parameters: `gate` (P, K - 1), log odds against the
    last class; for every item j, the rows of `probs_j` (K, L_j) on the simplex.
    """
    K = num_classes
    gate = pyro.param("gate", covariates.new_zeros(covariates.shape[-1], K - 1))
    probs = [
        pyro.param(f"probs_{j}", start_probs(answers, j, L, K), constraint=constraints.simplex)
        for j, L in enumerate(num_levels)
    ]
    with pyro.plate("people", len(answers)):
        z = pyro.sample("z", dist.Categorical(logits=pad(covariates @ gate, (0, 1))))
        for j, given in enumerate(answers.T):
            pyro.sample(f"x_{j}", dist.Categorical(probs[j][z]), obs=given)
    return z


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """Marriage (0-4), religiousness (0-4) and any affair (0-1), (601, 3); 1, man, decades, children, (601, 4)."""
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = [[int(row["rating"]) - 1, int(row["religiousness"]) - 1, int(row["affairs"] != "0")] for row in rows]
    covariates = [
        [1.0, row["gender"] == "male", float(row["yearsmarried"]) / 10, row["children"] == "yes"] for row in rows
    ]
    return torch.tensor(answers), torch.tensor(covariates, dtype=torch.float64)


def simulate(num: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` rows of answers drawn at `TRUTH`, and covariates (num, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(num, generator=generator, dtype=torch.float64)
    covariates = torch.stack([torch.ones_like(u), u], dim=-1)
    gate = pad(covariates @ TRUTH["gate"], (0, 1)).softmax(-1)
    z = torch.multinomial(gate, 1, generator=generator).squeeze(-1)
    draws = [torch.multinomial(TRUTH[f"probs_{j}"][z], 1, generator=generator) for j in range(3)]
    return torch.cat(draws, dim=-1), covariates
