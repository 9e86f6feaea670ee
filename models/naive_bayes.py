"""Naive Bayes with Gaussian features, where the class is known for some rows only.

    y_n                ~ Categorical(weights)                       n = 1 ... N, known or not
    x_{n,d} | y_n = k  ~ Normal(locs[k, d], scales[k, d])           d = 1 ... D

    log p = sum_{y_n known} log p(x_n, y_n) + sum_{y_n unknown} log sum_k p(x_n, y_n = k)

The known labels name the classes, so nothing is exchangeable. Fisher's iris with five labels a
species: -308.4365 in the interior (the likelihood is unbounded).

Source: Nigam, McCallum, Thrun & Mitchell (2000), Machine Learning 39, 103-134 (there
with multinomial features). Data: Fisher (1936), see `data/README.md`.
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

DATA = Path(__file__).parent / "data" / "iris.csv"
SPECIES = ("setosa", "versicolor", "virginica")
LABELLED = 5  # the first rows of every species keep their label

# What `simulate` draws from.
TRUTH = {
    "weights": torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64),
    "locs": torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 3.0]], dtype=torch.float64),
    "scales": torch.tensor([[0.5, 0.7], [0.6, 0.5], [0.8, 0.4]], dtype=torch.float64),
}


def model(x: Tensor, labels: Tensor, num_classes: int = 3) -> Tensor:
    """Draw rows `x` (N, D) and their `labels` (N,), integers in 0 ... K - 1, or -1 where unknown.

    Returns all labels. Parameters: `weights` (K,) on the simplex; `locs` (K, D); `scales` (K, D),
    positive.
    """
    K = num_classes
    weights = pyro.param("weights", x.new_full((K,), 1 / K), constraint=constraints.simplex)
    locs = pyro.param("locs", lambda: start_locs(x, labels, K))
    scales = pyro.param("scales", lambda: x.std(0).expand(K, -1).clone(), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(weights), obs=labels.clamp(min=0), obs_mask=labels >= 0)
        pyro.sample("x", dist.Normal(locs[y], scales[y]).to_event(1), obs=x)
    return y


def start_locs(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Means of the labelled rows, shrunk by one row at the mean of all."""
    known = torch.nn.functional.one_hot(labels.clamp(min=0), num_classes).to(x) * (labels >= 0).unsqueeze(-1)
    return (known.T @ x + x.mean(0)) / (known.sum(0) + 1).unsqueeze(-1)


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: unknown labels have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """Iris measurements in cm, (150, 4), and species, all but five of each unknown, (150,)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    x = torch.tensor([[float(value) for value in row[:4]] for row in rows], dtype=torch.float64)
    labels = torch.tensor([SPECIES.index(row[4]) for row in rows])
    rank = torch.stack([(labels[:n] == labels[n]).sum() for n in range(len(labels))])
    return x, labels.where(rank < LABELLED, -1)


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` rows drawn at `TRUTH`, (num, 2), one in four with its label; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(TRUTH["weights"], num, replacement=True, generator=generator)
    noise = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    known = torch.rand(num, generator=generator) < 0.25
    return TRUTH["locs"][y] + TRUTH["scales"][y] * noise, y.where(known, -1)
