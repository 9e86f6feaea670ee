"""Series of a DiscreteHMM in batches: closed forms, and the result of all data at once."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import agree, run
from pyro.distributions.constraints import positive, simplex
from shared.rows import f64
from torch.utils.data import DataLoader, TensorDataset

N, T = 26, 9


def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, T, generator=generator, dtype=torch.float64)
    x += 2.5 * (torch.rand(N, T, generator=generator) < 0.5)
    lengths = torch.randint(2, T + 1, (N,), generator=generator)
    lengths[3] = T
    return x, lengths


X, LENGTHS = data()
SHOWN = torch.arange(T) < LENGTHS.unsqueeze(-1)
COVARIATE = X.roll(1, 0).sin()


def moves():
    init = pyro.param("init", f64([0.4, 0.6]), constraint=simplex)
    return init.log(), pyro.param("trans", f64([[0.7, 0.3], [0.2, 0.8]]), constraint=simplex).log()


def emission():
    locs = pyro.param("locs", f64([0.0, 2.0]))
    return dist.Normal(locs, pyro.param("scales", f64([1.0, 1.5]), constraint=positive))


def plain(x):
    with pyro.plate("series", len(x)):
        pyro.sample("x", dist.DiscreteHMM(*moves(), emission()), obs=x)


def ragged(x, shown):
    with pyro.plate("series", len(x)):
        shape = (*x.shape, 2)
        pyro.sample("x", dist.DiscreteHMM(*moves(), emission().expand(shape).mask(shown.unsqueeze(-1))), obs=x)


def per_step(x):
    init, trans = moves()
    steps = pyro.param("steps", trans.exp().expand(T, 2, 2).clone().detach(), constraint=simplex)
    with pyro.plate("series", len(x)):
        pyro.sample("x", dist.DiscreteHMM(init, steps.log(), emission().expand((T, 2))), obs=x)


def regression(x, covariate):
    slopes, locs = pyro.param("slopes", f64([0.0, 0.1])), pyro.param("locs", f64([0.0, 2.0]))
    with pyro.plate("series", len(x)):
        pyro.sample("x", dist.DiscreteHMM(*moves(), dist.Normal(locs + slopes * covariate.unsqueeze(-1), 1.0)), obs=x)


def driven(x, covariate):
    """Transitions that depend on a covariate."""
    base, slope = pyro.param("base", f64([[0.7, 0.0], [0.0, 0.8]])), pyro.param("slope", f64([0.1, -0.1]))
    trans = (base + slope * covariate[..., None, None]).log_softmax(-1)
    with pyro.plate("series", len(x)):
        pyro.sample("x", dist.DiscreteHMM(moves()[0], trans, emission()), obs=x)


def groups(x, group):
    """Each series has the transitions of its group."""
    trans = pyro.param("both", f64([[[0.7, 0.3], [0.2, 0.8]], [[0.6, 0.4], [0.4, 0.6]]]), constraint=simplex)
    with pyro.plate("series", len(x)):
        pyro.sample("x", dist.DiscreteHMM(moves()[0], trans[group].log().unsqueeze(-3), emission()), obs=x)


def beside(x):
    """Another site of the series, and a prior."""
    share = pyro.sample("share", dist.Beta(f64(2.0), f64(2.0)))
    with pyro.plate("series", len(x)):
        pyro.sample("x", dist.DiscreteHMM(*moves(), emission()), obs=x)
        pyro.sample("y", dist.Bernoulli(share), obs=(x[:, 0] > 1.0).to(x.dtype))


CASES = {
    "plain": (plain, (X,)),
    "ragged": (ragged, (X, SHOWN)),
    "missing": (ragged, (torch.where(SHOWN, X, torch.nan), SHOWN)),
    "per step": (per_step, (X,)),
    "regression": (regression, (X, COVARIATE)),
    "driven": (driven, (X, COVARIATE)),
    "groups": (groups, (X, torch.arange(N) % 2)),
    "beside": (beside, (X,)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [7, 20])
def test_series_in_batches_are_the_whole(name, size):
    model, args = CASES[name]
    found = run(model, *args, batch_size=size, max_steps=5, tol=0)
    whole = run(model, *args, max_steps=5, tol=0)
    agree(found, whole)
    assert found.explain().equals(whole.explain())
    assert "gradient" not in set(found.explain()["owner"])


def test_weights_of_series_in_batches():
    weights = 1.0 + (torch.arange(N) % 3)
    found = run(plain, X, batch_size=7, weights=weights, max_steps=5, tol=0)
    agree(found, run(plain, X.repeat_interleave(1 + torch.arange(N) % 3, 0), max_steps=5, tol=0))


def test_batches_may_be_as_long_as_their_longest_series():
    def padded(rows):
        longest = max(int(n) for _, n in rows)
        shown = torch.stack([torch.arange(longest) < n for _, n in rows])
        return torch.stack([x[:longest] for x, _ in rows]), shown

    loader = DataLoader(TensorDataset(X, LENGTHS), batch_size=6, collate_fn=padded)
    found = run(ragged, loader, max_steps=5, tol=0)
    agree(found, run(ragged, X, SHOWN, max_steps=5, tol=0))
    assert set(found.explain()["owner"]) == {"closed form"}
