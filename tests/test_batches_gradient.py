"""Parameters of the gradient in batches: closed forms for the others, as on all data, and the same climb for these."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import agree, data, run
from pyro.distributions.constraints import positive, simplex
from shared.rows import chains
from test_batches_regressions import STEPS, coefficients, waits

from pyro_em import GradientMStep
from pyro_em.em import shares

f64 = partial(torch.tensor, dtype=torch.float64)


def kinds():
    return dist.Categorical(pyro.param("weights", f64([0.4, 0.6]), constraint=simplex))


def clamped(x):
    """A scale that is opaque beside weights in closed form."""
    locs, scales = pyro.param("locs", f64([-1.0, 1.5])), pyro.param("scales", f64([1.0, 1.2]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("x", dist.Normal(locs[z], scales.clamp(min=0.1)[z]), obs=x)


def gated(x, y):
    """Lines by least squares; who answers, by the gradient."""
    slopes, levels = coefficients()
    cut = pyro.param("cut", f64(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.sigmoid(x - cut) ** 2)).long()
        pyro.sample("y", dist.Normal(levels[z] + slopes[z] * x, 0.7), obs=y)


def with_a_prior(x):
    """A location whose prior has a parameter, which leaves both to the gradient."""
    width = pyro.param("width", f64(1.5), constraint=positive)
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("x", dist.Laplace(locs[z] * shift.exp(), width), obs=x)


def sequences(x):
    """Chains with a stationary start, which the program computes from the transitions."""
    trans = pyro.param("trans", f64([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    start = torch.linalg.matrix_power(trans, 64)[0]
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(start if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


CASES = {
    "clamped": (clamped, lambda: (data(),), {"closed form", "gradient"}),
    "gated": (gated, waits, {"least squares", "gradient"}),
    "sequences": (sequences, lambda: (data(dims=4),), {"closed form", "gradient"}),
}


@pytest.mark.parametrize("memory", ["held", "made anew"])
@pytest.mark.parametrize("size", [1, 17, 59])
@pytest.mark.parametrize("name", CASES)
def test_batches_are_the_whole(name, size, memory, monkeypatch):
    """The last batch has another size than the first; posteriors of few data stay in memory, of many they do not."""
    if memory == "made anew":
        monkeypatch.setattr(shares, "MAX_HELD", 0)
    model, make, owners = CASES[name]
    steps = {"max_steps": 2 if size == 1 else 20, "tol": 0}
    found, whole = run(model, *make(), batch_size=size, **steps), run(model, *make(), **steps)
    assert set(found.explain().owner) == set(whole.explain().owner) == owners
    assert found.explain().equals(whole.explain())
    assert found.history.objective.tolist() == pytest.approx(whole.history.objective.tolist(), abs=1e-8)
    agree(found, whole)


@pytest.mark.parametrize("name", CASES)
def test_batches_converge_where_the_whole_does(name):
    model, make, _ = CASES[name]
    found, whole = run(model, *make(), batch_size=17), run(model, *make())
    assert found.status is whole.status and found.n_steps == whole.n_steps
    agree(found, whole)


def test_batches_with_weights():
    x, weights = data(), 1.0 + (torch.arange(60) % 3)
    whole = run(clamped, x, weights=weights, **STEPS)
    agree(run(clamped, x, weights=weights, batch_size=16, **STEPS), whole)
    agree(run(clamped, x.repeat_interleave(1 + torch.arange(60) % 3), batch_size=16, **STEPS), whole)


def plates(x):
    """The same locations in an inner plate and outside of it."""
    locs, shift = pyro.param("locs", f64([-1.0, 1.5])), pyro.param("shift", f64(0.5))
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", kinds())
        pyro.sample("u", dist.Normal(locs[z], 2.0), obs=x[:, :1])
        pyro.sample("y", dist.Normal(shift.tanh(), 1.0), obs=x[:, :1] / 3)
        with pyro.plate("features", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def rows(x):
    """Sequences of several features, whose plate lies inside."""
    trans = pyro.param("trans", f64([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    locs, shift = pyro.param("locs", f64([-1.0, 1.5])), pyro.param("shift", f64(0.5))
    features = pyro.plate("features", x.shape[1], dim=-1)
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("y", dist.Normal(shift.tanh(), 1.0), obs=x[:, :1, 0] / 3)
        z = torch.tensor(0)
        for t in pyro.markov(range(4)):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"u_{t}", dist.Normal(locs[z], 2.0), obs=x[:, :1, t])
            with features:
                pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[..., t])


@pytest.mark.parametrize("size", [None, 17])
def test_weights_of_an_inner_plate(size):
    """A weight of two is a column that is there twice."""
    x, often = data(dims=3), torch.tensor([1, 2, 3])
    whole = run(plates, x.repeat_interleave(often, 1), **STEPS)
    assert set(whole.explain().owner) == {"closed form", "gradient"}
    agree(run(plates, x, weights={"features": often.double()}, batch_size=size, **STEPS), whole)


@pytest.mark.parametrize("size", [None, 17])
def test_weights_of_an_inner_plate_of_a_chain(size):
    x, often = data(dims=12).reshape(60, 3, 4), torch.tensor([1, 2, 3])
    weights = {"features": often.double()}
    whole = run(rows, x.repeat_interleave(often, 1), **STEPS)
    agree(run(rows, x, weights=weights, batch_size=size, **STEPS), whole)


def test_batches_with_restarts():
    """Random starts label rows of the first batch."""
    found = run(clamped, data(), batch_size=16, restarts=3, max_steps=25)
    assert sorted(found.history.restart.unique()) == [0, 1, 2]
    assert found.objective == pytest.approx(found.history.objective.max(), abs=1e-9)


def test_a_prior_counts_once():
    """Whatever the number of batches; the densities of point estimates are part of each run of the program."""
    start = run(with_a_prior, data(), max_steps=0)
    for size in (7, 60):
        found = run(with_a_prior, data(), batch_size=size, max_steps=0)
        assert found.objective == pytest.approx(start.objective, abs=1e-10)
        assert found.objective_kind == "log_joint"
    adam = GradientMStep(partial(torch.optim.Adam, lr=0.02))
    whole = run(with_a_prior, data(), m_step=adam, max_steps=3, tol=0)
    agree(run(with_a_prior, data(), m_step=adam, batch_size=7, max_steps=3, tol=0), whole)


def test_chains_all_by_the_gradient():
    x, steps = data(dims=4), {"m_step": GradientMStep(), "max_steps": 3, "tol": 0}
    agree(run(chains, x, batch_size=16, **steps), run(chains, x, **steps))
