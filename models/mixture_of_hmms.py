"""A mixture of hidden Markov models: clusters of series by how they move.

    c_n ~ Categorical(weights)                                                                       n = 1 ... N
    z_{n,1} | c_n ~ Categorical(init[c_n]),    z_{n,t} | z_{n,t-1} = j, c_n  ~ Categorical(trans[c_n, j])
    x_{n,t} | z_{n,t} = k, c_n  ~ Poisson(rates[c_n, k])                                             t = 1 ... T

    log p(x) = sum_n log sum_c weights[c] p(x_n | init[c], trans[c], rates[c])

Seizures of 59 epileptics in four fortnights, of whom some have many and some few: within either class, a patient is
in a calm or in a bad spell.

Source: Smyth (1997), Advances in Neural Information Processing Systems 9, 648-654. Data: Thall & Vail (1990), see
`data/README.md`.
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

DATA = Path(__file__).parent / "data" / "epilepsy.csv"

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.4, 0.6], dtype=torch.float64),
    "init": torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64),
    "trans": torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]], dtype=torch.float64),
    "rates": torch.tensor([[1.0, 5.0], [10.0, 30.0]], dtype=torch.float64),
}


def model(x: Tensor, num_classes: int = 2, num_states: int = 2) -> Tensor:
    """Draw counts `x` (N, T), sites `c, z_0, x_0, z_1, ...` in plate "series"; return the classes, of shape (N,).

    Parameters, the first three with rows on the simplex: `weights` (C,), `init` (C, K), `trans` (C, K, K); `rates`
    (C, K), positive.
    """
    C, K = num_classes, num_states
    weights = pyro.param("weights", x.new_full((C,), 1 / C), constraint=constraints.simplex)
    init = pyro.param("init", x.new_full((C, K), 1 / K), constraint=constraints.simplex)
    trans = pyro.param("trans", x.new_full((C, K, K), 1 / K), constraint=constraints.simplex)
    rates = pyro.param("rates", lambda: start_rates(x, C, K), constraint=constraints.positive)
    with pyro.plate("series", len(x)):
        c = pyro.sample("c", dist.Categorical(weights))
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init[c] if z is None else Vindex(trans)[c, z]))
            pyro.sample(f"x_{t}", dist.Poisson(Vindex(rates)[c, z]), obs=x[:, t])
    return c


def start_rates(x: Tensor, num_classes: int, num_states: int) -> Tensor:
    """For each class a quantile of the means of series, for its states half to one and a half times as much."""
    levels = (torch.arange(num_classes, dtype=x.dtype) + 0.5) / num_classes
    return torch.outer(x.mean(-1).quantile(levels) + 0.5, torch.linspace(0.5, 1.5, num_states).to(x))


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: classes and states have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Seizures of 59 patients in four periods of two weeks each, (59, 4)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return (torch.tensor([[float(count) for count in row[1:]] for row in rows], dtype=torch.float64),)


def simulate(num: int = 200, length: int = 8, seed: int = 0) -> tuple[Tensor]:
    """`num` series of `length` counts drawn at `TRUTH`, (num, length); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    probs, counts = TRUTH["init"][c], []
    for _ in range(length):
        z = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
        counts.append(torch.poisson(TRUTH["rates"][c, z], generator=generator))
        probs = TRUTH["trans"][c, z]
    return (torch.stack(counts, dim=-1),)
