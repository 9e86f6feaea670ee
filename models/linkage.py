"""Genetic linkage: the example by which the EM algorithm was introduced.

    cell_n       ~ Categorical(1/2, theta/4, (1 - theta)/4, (1 - theta)/4, theta/4)     n = 1 ... N
    phenotype_n  = AB, AB, Ab, aB or ab, by cell

    P(AB, Ab, aB, ab) = (1/2 + theta/4, (1 - theta)/4, (1 - theta)/4, theta/4)

The first two cells look alike: the E-step splits what was counted in them. From theta = 1/2 EM goes
by .6082 and .6243, and for 125, 18, 20 and 34 animals it ends at (15 + sqrt(53809)) / 394 = .626821.

Source: Dempster, Laird & Rubin (1977), JRSS B 39, 1-38, section 1; Rao (1965), *Linear Statistical
Inference*, from whom the data are.
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

DATA = Path(__file__).parent / "data" / "linkage.csv"
PHENOTYPE = torch.tensor([0, 0, 1, 2, 3])  # of each cell: AB, Ab, aB, ab are 0 to 3

# What `simulate` draws from.
TRUTH = {"theta": torch.tensor(0.7, dtype=torch.float64)}


def model(phenotypes: Tensor) -> Tensor:
    """Draw the `phenotypes` (N,), integers 0 to 3 for AB, Ab, aB and ab; return the cells, integers of shape (N,).

    Parameters: `theta` in [0, 1], the squared chance that no recombination parts the genes.
    """
    theta = pyro.param("theta", torch.tensor(0.5, dtype=torch.float64), constraint=constraints.unit_interval)
    certain = torch.eye(4, dtype=torch.float64)
    with pyro.plate("animals", len(phenotypes)):
        cell = pyro.sample("cell", dist.Categorical(chances(theta)))
        pyro.sample("phenotype", dist.Categorical(certain[PHENOTYPE[cell]]), obs=phenotypes)
    return cell


def chances(theta: Tensor) -> Tensor:
    """Of the five cells, (5,)."""
    alike, unlike = theta / 4, (1 - theta) / 4
    return torch.stack([torch.full_like(theta, 0.5), alike, unlike, unlike, alike])


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `cell` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Phenotypes of 197 animals, (197,)."""
    with DATA.open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["source"] == "dlr1977_rao")
    return (torch.arange(4).repeat_interleave(torch.tensor([int(row[f"y{i}"]) for i in range(1, 5)])),)


def simulate(num: int = 200, seed: int = 0) -> tuple[Tensor]:
    """`num` phenotypes drawn at `TRUTH`, (num,); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    return (PHENOTYPE[torch.multinomial(chances(TRUTH["theta"]), num, replacement=True, generator=generator)],)
