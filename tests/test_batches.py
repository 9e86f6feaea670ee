"""EM in batches is EM: the same steps and the same numbers, however the data come.

In torchgmm and pycave a fit in minibatches differs from that of all data, and NaN parameters come with converged=True.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import CASES, N, agree, data, mixture, run
from pyro.distributions.constraints import simplex, unit_interval
from torch.utils.data import DataLoader, TensorDataset

from pyro_em import EM, RandomDraws, Status

f64 = partial(torch.tensor, dtype=torch.float64)
SIZES = (7, 59, 60, 100)  # of which one divides N, and one is larger


# Batch size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"), [*(("mixture", s) for s in SIZES), *((n, s) for n in CASES for s in (16, 30))]
)
def test_batches_are_the_whole(name, size):
    model, make = CASES[name]
    x = make()
    found, whole = run(model, *x, batch_size=size, max_steps=4, tol=0), run(model, *x, max_steps=4, tol=0)
    agree(found, whole)
    assert found.history.objective.tolist() == pytest.approx(whole.history.objective.tolist(), abs=1e-8)
    assert found.n_steps == 4


def test_batches_of_one():
    x = data(9)
    agree(run(mixture, x, batch_size=1, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0))


@pytest.mark.parametrize("size", [7, 30])
def test_batches_converge_where_the_whole_does(size):
    x = data()
    found, whole = run(mixture, x, batch_size=size), run(mixture, x)
    assert found.status is whole.status is Status.CONVERGED and found.n_steps == whole.n_steps
    agree(found, whole)


def test_what_converged_is_finite():
    """An inverted flag let NaN parameters pass for converged."""
    for size in (7, 16, 60):
        result = run(mixture, data(), batch_size=size)
        assert result.converged and all(torch.isfinite(v).all() for v in result.params.values())
        result = run(mixture, data(), batch_size=size, max_steps=2, tol=1e6)
        assert result.status is Status.MAX_STEPS and not result.converged


def test_a_bare_nan_in_a_later_batch_is_no_convergence():
    x = data()
    x[-1] = torch.nan
    try:
        result = run(mixture, x, batch_size=16, max_steps=20)
    except ValueError:
        return
    assert not result.converged and all(torch.isfinite(v).all() for v in result.params.values())


@pytest.mark.parametrize("size", [7, 30])
def test_batches_repeat_and_disturb_nobody(size):
    state = torch.get_rng_state()
    one, other = (run(mixture, data(), batch_size=size, max_steps=3, tol=0, seed=s) for s in (1, 2))
    assert torch.equal(state, torch.get_rng_state())
    agree(one, other)


def test_starts_from_the_first_batch():
    """Initial values that the model computes from its data are those of the first batch: it is all there is to see."""

    def model(x):
        weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
        locs = pyro.param("locs", lambda: torch.stack([x.min(), x.max()]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    x = data().sort().values
    first = run(model, x[:16], max_steps=0).params
    agree(run(model, x, batch_size=16, max_steps=3, tol=0), run(model, x, init=first, max_steps=3, tol=0))


# With the rest of EM --------------------------------------------------------------------------------------


class Shifted:
    def place(self, engine):
        engine.move_to(engine.coordinates() + 0.2)


@pytest.mark.parametrize("size", [7, 30])
def test_batches_and_the_options_of_em(size):
    x = data()
    for options in (
        {"accelerate": "squarem"},
        {"fixed": "locs"},
        {"start": Shifted()},
        {"on_degenerate": "floor"},
    ):
        options |= {"max_steps": 6, "tol": 0}
        agree(run(mixture, x, batch_size=size, **options), run(mixture, x, **options), atol=1e-7)


def test_batches_and_restarts():
    x = data()
    found = run(mixture, x, batch_size=16, restarts=3, start=RandomDraws(0.3), max_steps=25)
    assert sorted(found.history.restart.unique()) == [0, 1, 2]
    assert found.objective == pytest.approx(found.history.objective.max(), abs=1e-9)
    assert run(mixture, x, init=found, max_steps=0).objective == pytest.approx(found.objective, abs=1e-9)


def test_batches_and_weights():
    x, weights = data(), 1.0 + (torch.arange(N) % 3)
    options = {"max_steps": 3, "tol": 0}
    whole = run(mixture, x, weights=weights, **options)
    agree(run(mixture, x, weights=weights, batch_size=16, **options), whole)
    agree(run(mixture, x.repeat_interleave(1 + torch.arange(N) % 3), batch_size=16, **options), whole)


def test_the_posterior_is_that_of_all_data():
    x = data()
    found, whole = run(mixture, x, batch_size=16, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0)
    torch.testing.assert_close(found.posterior()["z"].probs, whole.posterior()["z"].probs, atol=1e-7, rtol=0)
    assert found.posterior()["z"].probs.shape == (N, 2)


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -3])
def test_batch_size_is_positive(size):
    with pytest.raises(ValueError, match=f"batch_size.*{size}"):
        EM(batch_size=size)


def test_batch_size_twice():
    with pytest.raises(ValueError, match=r"batch_size=.*DataLoader"):
        run(mixture, DataLoader(TensorDataset(data()), batch_size=7), batch_size=7)


def test_nothing_to_cut():
    with pytest.raises(ValueError, match=r"batch_size=.*no tensor"):
        run(mixture, data().tolist(), batch_size=7)


def test_batches_need_a_plate_over_the_data():
    def model(x):
        loc = pyro.param("loc", f64(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(ValueError, match="plate"):
        run(model, data(), batch_size=7)


def test_a_latent_for_all_data_is_refused_or_exact():
    """Batches of a model whose data hang together by a latent are no sum over batches."""

    def model(x):
        regime = pyro.sample("regime", dist.Bernoulli(pyro.param("p", f64(0.3), constraint=unit_interval)))
        locs = pyro.param("locs", f64([-1.0, 1.5]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(locs[regime.long()], 1.0), obs=x)

    try:
        found = run(model, data(), batch_size=7, max_steps=3, tol=0)
    except ValueError as error:
        assert "regime" in str(error)
        return
    agree(found, run(model, data(), max_steps=3, tol=0))
