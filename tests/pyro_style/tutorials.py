"""Models of Pyro's tutorials on enumeration and on Gaussian mixtures, and its toy mixture of coins."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

__all__ = ["coins", "corners", "features", "gaussians", "loop", "loop_markov", "three_draws"]


def start(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).exp()


@config_enumerate
def coins(seen: Mapping[str, Tensor], num: int) -> None:
    """A coin that is seen chooses one that is not, which chooses one that is seen."""
    first = pyro.sample("first", dist.Beta(1, 1))
    second = pyro.sample("second", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
    third = pyro.sample("third", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
    with pyro.plate("tosses", num):
        a = pyro.sample("a", dist.Bernoulli(first.expand(num)), obs=seen["a"])
        b = pyro.sample("b", dist.Bernoulli(Vindex(second)[a.long()]), infer={"enumerate": "parallel"})
        pyro.sample("c", dist.Bernoulli(Vindex(third)[b.long()]), obs=seen["c"])


@config_enumerate
def gaussians(data: Tensor, size: int = 2, concentration: float = 1.5) -> None:
    """A mixture whose parameters all have priors, the means in a plate of components."""
    weights = pyro.sample("weights", dist.Dirichlet(concentration * torch.ones(size)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", size):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=data)


@config_enumerate
def three_draws(last: Tensor) -> None:
    """Three draws from one table, the last of which is seen."""
    table = pyro.param("table", start(3, 3) / start(3, 3).sum(-1, keepdim=True), constraint=constraints.simplex)
    x = pyro.sample("x", dist.Categorical(table[0]))
    y = pyro.sample("y", dist.Categorical(table[x]))
    pyro.sample("z", dist.Categorical(table[y]), obs=last)


@config_enumerate
def corners(z: Tensor) -> None:
    """Two latents outside of a plate index a table with an axis for the plate."""
    table = start(5, 4, 3, 2)
    p = pyro.param("p", table / table.sum(-1, keepdim=True), constraint=constraints.simplex)
    x = pyro.sample("x", dist.Categorical(torch.ones(4)))
    y = pyro.sample("y", dist.Categorical(torch.ones(3)))
    with pyro.plate("z_plate", 5):
        pyro.sample("z", dist.Categorical(Vindex(p)[..., x, y, :]), obs=z)


@config_enumerate
def features(x: Tensor) -> None:
    """Plates of data, features and components; the index of a plate joins that of a latent."""
    items, parts = pyro.plate("items", x.shape[1], dim=-1), pyro.plate("parts", x.shape[0], dim=-2)
    components = pyro.plate("components", 2, dim=-1)
    with parts, components:
        p = pyro.sample("p", dist.Dirichlet(2.0 * torch.ones(3)))
    with items:
        c = pyro.sample("c", dist.Categorical(torch.ones(2)))
        with parts as part:
            pyro.sample("x", dist.Categorical(Vindex(p)[part[..., None], c, :]), obs=x)


def loop(data: Tensor, width: int, size: int = 3, concentration: float = 1.5) -> None:
    """A hidden Markov model in a plain loop: every state is in scope of all."""
    chain(data, width, size, concentration, enumerate(data))


def loop_markov(data: Tensor, width: int, size: int = 3, concentration: float = 1.5) -> None:
    chain(data, width, size, concentration, pyro.markov(enumerate(data)))


def chain(data: Tensor, width: int, size: int, concentration: float, steps) -> None:
    with pyro.plate("states", size):
        moves = pyro.sample("moves", dist.Dirichlet(concentration * torch.ones(size)))
        symbols = pyro.sample("symbols", dist.Dirichlet(concentration * torch.ones(width)))
    x = 0
    for t, y in steps:
        x = pyro.sample(f"x_{t}", dist.Categorical(moves[x]), infer={"enumerate": "parallel"})
        pyro.sample(f"  y_{t}", dist.Categorical(symbols[x]), obs=y)
