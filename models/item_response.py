"""Item response theory: one ability behind all answers, integrated on a grid.

    ability_n           ~ Normal(0, 1)                                            n = 1 ... N people
    x_{n,j} | ability_n ~ Bernoulli(logits = intercepts[j] + slopes[j] ability_n)  j = 1 ... J items

Gauss-Hermite quadrature makes the ability a latent of finite support: node q with weight w_q,

    log p(x) = sum_n log sum_q w_q prod_j p(x_{n,j} | ability = node_q)

exact for polynomials of degree up to 2 Q - 1. This is Bock & Aitkin's EM: the E-step spreads people
over the nodes, the M-step is a logistic regression an item. With one slope for all items it is the
Rasch model. LSAT, section 6: -2466.6534 (two parameters an item), -2466.9376 (Rasch).

Source: Birnbaum (1968) in Lord & Novick; Bock & Aitkin (1981), Psychometrika 46, 443-459; Golub &
Welsch (1969) on the nodes. Data: Bock & Lieberman (1970), see `data/README.md`.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["TRUTH", "load", "make", "model", "rasch", "simulate", "two_parameter"]

DATA = Path(__file__).parent / "data" / "lsat6.csv"

# What `simulate` draws from.
TRUTH = {
    "intercepts": torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64),
    "slopes": torch.tensor([0.5, 1.0, 1.5, 1.0, 2.0], dtype=torch.float64),
}


def rasch(num_items: int) -> Tensor:
    """One slope for all items, shape ()."""
    return pyro.param("slope", torch.ones((), dtype=torch.float64))


def two_parameter(num_items: int) -> Tensor:
    """A slope for every item, shape (J,)."""
    return pyro.param("slopes", torch.ones(num_items, dtype=torch.float64))


def model(x: Tensor, num_nodes: int = 21, discrimination: Callable[[int], Tensor] = two_parameter) -> Tensor:
    """Draw the answers `x` (N, J), zeros and ones; return the node of every person, integers of shape (N,).

    Parameters: `intercepts` (J,), the log odds at ability zero, and `slopes` (J,) or `slope`.
    """
    nodes, weights = gauss_hermite(num_nodes)
    intercepts = pyro.param("intercepts", lambda: x.mean(0).logit(eps=0.5 / len(x)))
    slopes = discrimination(x.shape[-1])
    with pyro.plate("people", len(x)):
        node = pyro.sample("node", dist.Categorical(weights))
        ability = nodes[node].unsqueeze(-1)
        pyro.sample("x", dist.Bernoulli(logits=intercepts + slopes * ability).to_event(1), obs=x)
    return node


def gauss_hermite(num_nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (Q,) for the standard normal: the Jacobi matrix's eigenvalues and first components."""
    off = torch.arange(1, num_nodes, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(off.diag(1) + off.diag(-1))
    return nodes, vectors[0].square()


def make(discrimination: Callable[[int], Tensor] = two_parameter) -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: the node has finite support and can be summed out."""
    return partial(model, discrimination=discrimination), None


def load() -> tuple[Tensor]:
    """Five items of the Law School Admission Test, section 6: one row a person, (1000, 5)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    patterns = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
    return (patterns[:, :-1].repeat_interleave(patterns[:, -1].long(), dim=0),)


def simulate(num: int = 400, seed: int = 0) -> tuple[Tensor]:
    """`num` rows drawn at `TRUTH`, (num, 5), abilities normal; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    ability = torch.randn(num, 1, generator=generator, dtype=torch.float64)
    return (torch.bernoulli((TRUTH["intercepts"] + TRUTH["slopes"] * ability).sigmoid(), generator=generator),)
