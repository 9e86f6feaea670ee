"""Genetic linkage: the example by which the EM algorithm was introduced.

    dominant_n ~ Bernoulli(1/2)               its phenotype is AB, whatever the gametes were
    alike_n    ~ Bernoulli(theta)             else: of the parental types AB and ab, or not, Ab and aB
    first_n    ~ Bernoulli(1/2)               which of the two

    P(AB, Ab, aB, ab) = (1/2 + theta/4, (1 - theta)/4, (1 - theta)/4, theta/4)

AB alone is ambiguous: the E-step splits it into what theta speaks about and what it does not. For
125, 18, 20 and 34 animals the maximum is theta = (15 + sqrt(53809)) / 394 = .6268214978709824.

Source: Dempster, Laird & Rubin (1977), JRSS B 39, 1-38, section 1; Rao (1973), *Linear Statistical
Inference*, 5g.1, from whom the data are.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "linkage.csv"
# Phenotype by (dominant, alike, first): AB, Ab, aB, ab are 0 to 3.
PHENOTYPE = torch.tensor([[[2, 1], [3, 0]], [[0, 0], [0, 0]]])

# What `simulate` draws from.
TRUTH = {"theta": torch.tensor(0.7, dtype=torch.float64)}


def model(phenotypes: Tensor) -> Tensor:
    """Draw the `phenotypes` (N,), integers 0 to 3 for AB, Ab, aB and ab; return `alike`, of shape (N,).

    Parameters: `theta` in [0, 1], the squared chance that no recombination parts the genes.
    """
    half = torch.tensor(0.5, dtype=torch.float64)
    theta = pyro.param("theta", half.clone(), constraint=constraints.unit_interval)
    certain = torch.eye(4, dtype=torch.float64)
    with pyro.plate("animals", len(phenotypes)):
        dominant = pyro.sample("dominant", dist.Bernoulli(half))
        alike = pyro.sample("alike", dist.Bernoulli(theta))
        first = pyro.sample("first", dist.Bernoulli(half))
        cell = Vindex(PHENOTYPE)[dominant.long(), alike.long(), first.long()]
        pyro.sample("phenotype", dist.Categorical(certain[cell]), obs=phenotypes)
    return alike


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: all latents are binary and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Phenotypes of 197 animals, (197,)."""
    with DATA.open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["source"] == "dlr1977_rao")
    return (torch.arange(4).repeat_interleave(torch.tensor([int(row[f"y{i}"]) for i in range(1, 5)])),)


def simulate(num: int = 200, seed: int = 0) -> tuple[Tensor]:
    """`num` phenotypes drawn at `TRUTH`, (num,); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.stack([torch.full_like(TRUTH["theta"], 0.5), TRUTH["theta"], torch.full_like(TRUTH["theta"], 0.5)])
    dominant, alike, first = torch.bernoulli(chances.expand(num, 3), generator=generator).long().T
    return (PHENOTYPE[dominant, alike, first],)
