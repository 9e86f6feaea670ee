"""ABO blood groups: gene frequencies from phenotypes, by gene counting.

    mother_n, father_n ~ Categorical(freqs)             one allele A, B or O from either parent
    group_n            = A, B, AB or O, as A and B dominate O         n = 1 ... N people

    P(A) = p_A^2 + 2 p_A p_O,  P(B) = p_B^2 + 2 p_B p_O,  P(AB) = 2 p_A p_B,  P(O) = p_O^2

Genotypes are latent, and independent alleles are Hardy-Weinberg equilibrium. The E-step splits the
phenotypes into genotypes, the M-step counts alleles. Of 521 people, 186 A, 38 B, 13 AB and 284 O:
p_A = .21359, p_B = .05015, p_O = .73626.

Source: Smith (1957), Annals of Human Genetics 21, 254-276; Lange (2010), *Numerical Analysis for
Statisticians*. Data: Clarke et al. (1959), see `data/README.md`.
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

__all__ = ["GROUPS", "TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "abo.csv"
GROUPS = ("A", "B", "AB", "O")
# Blood group by allele of mother and father, alleles in the order A, B, O.
GROUP = torch.tensor([[0, 2, 0], [2, 1, 1], [0, 1, 3]])

# What `simulate` draws from.
TRUTH = {"freqs": torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64)}


def model(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the blood `groups` (N,), indices into `GROUPS`; return both parents' alleles, of shape (N,).

    Parameters: `freqs` (3,) on the simplex, the frequencies of A, B and O.
    """
    freqs = pyro.param("freqs", torch.full((3,), 1 / 3, dtype=torch.float64), constraint=constraints.simplex)
    certain = torch.eye(4, dtype=torch.float64)
    with pyro.plate("people", len(groups)):
        mother = pyro.sample("mother", dist.Categorical(freqs))
        father = pyro.sample("father", dist.Categorical(freqs))
        pyro.sample("group", dist.Categorical(certain[Vindex(GROUP)[mother, father]]), obs=groups)
    return mother, father


def make() -> tuple[Callable[..., tuple[Tensor, Tensor]], None]:
    """The model, and no guide: alleles have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Blood groups of 521 patients with peptic ulcer, one each, (521,)."""
    with DATA.open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["source"] == "clarke1959")
    return (torch.arange(len(GROUPS)).repeat_interleave(torch.tensor([int(row[group]) for group in GROUPS])),)


def simulate(num: int = 500, seed: int = 0) -> tuple[Tensor]:
    """`num` blood groups drawn at `TRUTH`, (num,); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    mother, father = torch.multinomial(TRUTH["freqs"], 2 * num, replacement=True, generator=generator).reshape(2, num)
    return (GROUP[mother, father],)
