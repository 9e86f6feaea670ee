"""Noisy-or diagnosis: hidden causes, any of which can bring about a finding.

    cause_{n,c}   ~ Bernoulli(prior[c])                                c = 1 ... C, n = 1 ... N people
    acts_{n,c,j}  ~ Bernoulli(cause_{n,c} activation[c, j])            j = 1 ... J findings
    leaks_{n,j}   ~ Bernoulli(leak[j])                                 whatever else there is
    x_{n,j}       = leaks_{n,j} or acts_{n,1,j} or ... or acts_{n,C,j}

    P(x_{n,j} = 0 | causes) = (1 - leak[j]) prod_c (1 - activation[c, j])^cause_{n,c}

Causes are independent until a finding is seen: then one explains the other away. With the acts as
latents of their own, every parameter is a share of expected counts. Estimates often lie on the
boundary, and EM is slow. Here the findings are wrong answers to five test items, the causes two
gaps in what people know, the leaks slips of the pen.

Source: Pearl (1988), *Probabilistic Reasoning in Intelligent Systems*, section 4.3; Shwe et al.
(1991), Methods of Information in Medicine 30, 241-255. Data: Bock & Lieberman (1970), see
`data/README.md`.
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

DATA = Path(__file__).parent / "data" / "lsat7.csv"

# What `simulate` draws from.
TRUTH = {
    "prior": torch.tensor([0.4, 0.3], dtype=torch.float64),
    "leak": torch.tensor([0.05, 0.1, 0.05, 0.1, 0.05], dtype=torch.float64),
    "activation": torch.tensor([[0.9, 0.8, 0.6, 0.1, 0.2], [0.1, 0.2, 0.3, 0.7, 0.9]], dtype=torch.float64),
}


def model(x: Tensor, num_causes: int = 2) -> list[Tensor]:
    """Draw the findings `x` (N, J), zeros and ones; return the causes, each of shape (N, 1).

    Parameters, all in [0, 1]: `prior` (C,); `leak` (J,); `activation` (C, J).
    """
    C, J = num_causes, x.shape[-1]
    unit = constraints.unit_interval
    prior = pyro.param("prior", x.new_full((C,), 0.4), constraint=unit)
    leak = pyro.param("leak", x.new_full((J,), 0.1), constraint=unit)
    activation = pyro.param("activation", lambda: start_activation(x, C), constraint=unit)
    with pyro.plate("people", len(x), dim=-2):
        causes = [pyro.sample(f"cause_{c}", dist.Bernoulli(prior[c])) for c in range(C)]
        with pyro.plate("findings", J, dim=-1):
            found = pyro.sample("leaks", dist.Bernoulli(leak))
            for c, present in enumerate(causes):
                found = found.maximum(pyro.sample(f"acts_{c}", dist.Bernoulli(present * activation[c])))
            pyro.sample("x", dist.Bernoulli(found), obs=x)
    return causes


def start_activation(x: Tensor, num_causes: int) -> Tensor:
    """Every cause acts strongly on its share of the findings in order, weakly on the others."""
    share = torch.arange(x.shape[-1]) * num_causes // x.shape[-1]
    return (share == torch.arange(num_causes).unsqueeze(-1)).to(x) * 0.5 + 0.2


def make() -> tuple[Callable[..., list[Tensor]], None]:
    """The model, and no guide: the latents are binary and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Wrong answers of 1000 people to five items of the Law School Admission Test, section 7, (1000, 5)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    patterns = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
    return (1 - patterns[:, :-1].repeat_interleave(patterns[:, -1].long(), dim=0),)


def simulate(num: int = 400, seed: int = 0) -> tuple[Tensor]:
    """`num` rows drawn at `TRUTH`, (num, 5); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.bernoulli(TRUTH["prior"].expand(num, 2), generator=generator)
    quiet = (1 - TRUTH["leak"]) * (1 - causes.unsqueeze(-1) * TRUTH["activation"]).prod(-2)
    return (torch.bernoulli(1 - quiet, generator=generator),)
