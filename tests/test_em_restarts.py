"""Restarts are all kept, repeat by seed and disturb nobody; the best of them is the result."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex
from shared.starts import TRUE, clusters, counts, f64, mixture, poissons, run, starts_of

from pyro_em import DegenerateError, KMeans, RandomDraws, RandomResponsibilities

STARTS = {"default": None, "draws": RandomDraws(), "responsibilities": RandomResponsibilities(rows=30)}
every_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


@every_start
def test_every_restart_is_in_the_history(start):
    result = run(mixture, clusters(), restarts=5, start=start, max_steps=25)
    history = result.history
    assert sorted(history.restart.unique()) == [0, 1, 2, 3, 4]
    assert (history.step == 0).sum() == 5
    for _, rows in history.groupby("restart"):
        assert rows.step.tolist() == list(range(len(rows)))
        assert (rows.objective.diff().dropna() > -1e-9).all()
    assert history.seconds.is_monotonic_increasing
    assert history.step.iloc[-1] == result.n_steps


@every_start
def test_the_best_restart_is_the_result(start):
    x = clusters()
    result = run(mixture, x, restarts=6, start=start)
    params = result.params
    by_state = dist.Normal(params["locs"], params["scale"]).log_prob(x.unsqueeze(-1)) + params["weights"].log()
    assert result.objective == pytest.approx(by_state.logsumexp(-1).sum().item(), abs=1e-9)
    assert result.objective == pytest.approx(result.history.objective.max(), abs=1e-9)
    assert result.converged


def test_more_restarts_are_no_worse():
    """The first restarts are the same ones, however many follow."""
    few, many = (run(poissons, counts(), restarts=n, start=RandomDraws()) for n in (3, 6))
    assert many.objective >= few.objective - 1e-3
    assert starts_of(many).tolist()[:3] == starts_of(few).tolist()


@every_start
def test_restarts_differ(start):
    found = starts_of(run(mixture, clusters(), restarts=6, start=start, max_steps=1)).tolist()
    assert len(set(found)) == 6


@every_start
def test_restarts_repeat_by_seed(start):
    one, again, other = (run(mixture, clusters(), restarts=3, start=start, seed=s, max_steps=4) for s in (7, 7, 8))
    columns = ["step", "objective", "restart"]
    assert one.history[columns].equals(again.history[columns])
    assert all(torch.equal(v, again.params[n]) for n, v in one.params.items())
    assert starts_of(one).tolist()[1:] != starts_of(other).tolist()[1:]


def test_without_a_seed_the_callers_state_decides():
    found = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        found.append(
            starts_of(run(mixture, clusters(), seed=None, restarts=3, start=RandomDraws(), max_steps=1)).tolist()
        )
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("start", [None, RandomDraws(), RandomResponsibilities(), KMeans("x")])
@pytest.mark.parametrize("seed", [None, 3])
def test_the_random_state_of_the_caller_stays(seed, start):
    torch_state, numpy_state, state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    run(mixture, clusters(10), seed=seed, restarts=2, start=start, max_steps=3)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert random.getstate() == state
    for a, b in zip(numpy_state, np.random.get_state(), strict=True):
        assert np.array_equal(a, b)


def test_the_first_restart_is_the_models_own_start():
    plain = run(mixture, clusters(), max_steps=0)
    assert starts_of(run(mixture, clusters(), restarts=2, max_steps=1))[0] == plain.objective
    near = {"locs": TRUE}
    plain = run(mixture, clusters(), max_steps=0, init=near)
    assert starts_of(run(mixture, clusters(), restarts=2, max_steps=1, init=near))[0] == plain.objective


def test_restarts_are_short_runs_and_one_long_one():
    result = run(poissons, counts(), restarts=4, start=RandomDraws(), tol=1e-8)
    lengths = result.history.groupby("restart").step.max()
    assert (lengths > 20).sum() <= 1 and result.converged


def test_restarts_keep_to_the_cap():
    result = run(mixture, clusters(), restarts=3, start=RandomDraws(), max_steps=4, tol=0)
    assert not result.converged
    assert (result.history.groupby("restart").step.max() <= 8).all()  # a short run, and the best one's long run


def test_callbacks_see_every_restart():
    seen = []
    result = run(mixture, clusters(), restarts=3, start=RandomDraws(), callbacks=[lambda info: seen.append(info)])
    assert len(seen) >= len(result.history) - 3


def test_a_restart_that_collapses_is_out():
    """The model's own start puts a component on two equal data."""

    def model(x):
        weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
        locs = pyro.param("locs", f64([-6.0, 5.0]))
        scales = pyro.param("scales", f64([0.1, 2.0]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)

    x = torch.cat([f64([-6.0, -6.0]), clusters()[30:]])
    with pytest.raises(DegenerateError, match=r"'scales' at \[0\]"):
        run(model, x)
    result = run(model, x, restarts=5)
    assert 0 in result.history.restart.unique() and result.history.restart.iloc[-1] > 0  # kept, but not the one
    assert result.converged and all(torch.isfinite(v).all() for v in result.params.values())


def test_restarts_with_fixed_parameters():
    result = run(mixture, clusters(), restarts=4, fixed="locs", init={"locs": TRUE}, start=KMeans("x"))
    assert torch.equal(result.params["locs"], TRUE)
    assert result.params["scale"].item() == pytest.approx(0.5, abs=0.1)
