"""What cannot be cut into batches is refused: a model in which rows depend on each other."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import agree, data, run
from pyro.distributions.constraints import positive
from shared.rows import f64
from torch.utils.data import DataLoader, TensorDataset

from pyro_em import ModelError


def centred(x):
    """Takes the mean off by itself."""
    locs = pyro.param("locs", f64([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x - x.mean())


def scaled(x):
    """Counts a batch for all data, as a step of SVI would."""
    locs = pyro.param("locs", f64([-1.0, 1.0]))
    with pyro.plate("data", len(x)), pyro.poutine.scale(scale=60 / len(x)):
        z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def on_a_grid(x, grid):
    """Abilities on known points."""
    loc, scale = pyro.param("loc", f64(0.0)), pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=-grid.square() / 2))
        pyro.sample("x", dist.Normal(loc + grid[z], scale), obs=x)


@pytest.mark.parametrize("model", [centred, scaled])
@pytest.mark.parametrize("size", [7, 30])
def test_rows_that_depend_on_each_other(model, size):
    with pytest.raises(ModelError, match="whatever rows are beside it"):
        run(model, data(), batch_size=size)
    with pytest.raises(ModelError, match="whatever rows are beside it"):
        run(model, DataLoader(TensorDataset(data()), batch_size=size))


@pytest.mark.parametrize("size", [5, 7])
def test_an_argument_of_as_many_rows_that_is_no_data(size):
    x, grid = data(21), torch.linspace(-3, 3, 21, dtype=torch.float64)
    with pytest.raises(ModelError, match="was cut with them"):
        run(on_a_grid, x, grid, batch_size=size)
    held = partial(on_a_grid, grid=grid)  # the way out that the message names
    agree(run(held, x, batch_size=size, max_steps=4, tol=0), run(held, x, max_steps=4, tol=0))
    fewer = torch.linspace(-3, 3, 20, dtype=torch.float64)
    agree(run(on_a_grid, x, fewer, batch_size=size, max_steps=4, tol=0), run(on_a_grid, x, fewer, max_steps=4, tol=0))
