"""Restarts are all kept, repeat by seed and disturb nobody; starts find what the model's own initial values do not."""

import random
import sys
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import lower_cholesky, positive, simplex, unit_interval

from models import gaussian_mixture
from pyro_em import EM, DegenerateError, KMeans, ModelError, RandomDraws, RandomResponsibilities, fit

f64 = partial(torch.tensor, dtype=torch.float64)
TRUE = f64([-6.0, 0.0, 6.0, 12.0])
STARTS = {"default": None, "draws": RandomDraws(), "responsibilities": RandomResponsibilities(rows=30)}
every_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


def clusters(num=30, dims=None):
    """Four clusters of spread 1/2, six apart."""
    generator = torch.Generator().manual_seed(1)
    shape = (4, num) if dims is None else (4, num, dims)
    centres = TRUE.reshape(-1, *[1] * (len(shape) - 1))
    return (centres + 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).flatten(0, 1)


def mixture(x, num=4):
    """Starts with all but one component in the same place, which EM by itself does not leave."""
    weights = pyro.param("weights", torch.full((num,), 1 / num), constraint=simplex)
    locs = pyro.param("locs", torch.full((num,), 20.0) + 0.1 * torch.arange(num))
    scale = pyro.param("scale", f64(3.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def poissons(x):
    weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=simplex)
    rates = pyro.param("rates", f64([2.0, 2.1, 2.2]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def classes(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    probs = pyro.param("probs", torch.full((2, x.shape[1]), 0.5), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)


def chains(x):
    """Sequences (N, T) of a hidden Markov model."""
    init = pyro.param("init", f64([0.5, 0.5]), constraint=simplex)
    trans = pyro.param("trans", f64([[0.6, 0.4], [0.4, 0.6]]), constraint=simplex)
    locs = pyro.param("locs", f64([0.1, 0.2]))
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


def gated(net):
    """Mixing weights from a network: no closed form reaches its parameters."""

    def model(x):
        pyro.module("net", net)
        locs = pyro.param("locs", f64([0.4, 0.5]))
        scale = pyro.param("scale", f64(2.0), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=net(x.unsqueeze(-1))))
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model


def network():
    return torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))


def counts():
    generator = torch.Generator().manual_seed(3)
    return torch.poisson(f64([1.0, 8.0, 25.0]).repeat_interleave(30), generator=generator)


def answers():
    """Two kinds of respondents to six questions."""
    generator = torch.Generator().manual_seed(4)
    probs = f64([[0.9, 0.8, 0.9, 0.1, 0.2, 0.1], [0.1, 0.3, 0.2, 0.8, 0.9, 0.9]]).repeat_interleave(40, 0)
    return torch.bernoulli(probs, generator=generator)


def sequences():
    generator = torch.Generator().manual_seed(5)
    z = (torch.rand(25, 1, generator=generator) < 0.5).expand(25, 5) ^ (torch.rand(25, 5, generator=generator) < 0.1)
    return torch.where(z, 4.0, -4.0) + torch.randn(25, 5, generator=generator, dtype=torch.float64)


def run(model, *args, seed=0, init=None, callbacks=(), **options):
    return fit(model, *args, strategy=EM(**options), seed=seed, init=init, callbacks=callbacks, progress=False)


def starts_of(result):
    """The objective where each restart began."""
    return result.history[result.history.step == 0].groupby("restart").objective.first()


# Restarts -------------------------------------------------------------------------------------------------


@every_start
def test_every_restart_is_in_the_history(start):
    result = run(mixture, clusters(), restarts=5, start=start, max_steps=25)
    history = result.history
    assert sorted(history.restart.unique()) == [0, 1, 2, 3, 4]
    assert (history.step == 0).sum() == 5
    for _, rows in history.groupby("restart"):
        assert rows.step.tolist() == list(range(len(rows)))
        assert rows.objective.diff().dropna().min() > -1e-9
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


# K-means --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerate", [None, "squarem"])
def test_kmeans_finds_clusters_from_a_bad_start(accelerate):
    x = clusters()
    same = {"locs": torch.full((4,), 3.0)}  # components in one place never part
    assert run(mixture, x, init=same).params["locs"].diff().abs().max() < 1e-6
    for seed in range(3):
        result = run(mixture, x, init=same, start=KMeans("x"), seed=seed, restarts=3, accelerate=accelerate)
        torch.testing.assert_close(result.params["locs"].sort().values, TRUE, atol=0.4, rtol=0)


def test_kmeans_starts_at_the_means_of_the_clusters():
    """Some of a few seeds have one in each cluster; from there nothing is left to move."""
    x = clusters()
    starts = [run(mixture, x, start=KMeans("x"), seed=s, max_steps=0).params["locs"].sort().values for s in range(6)]
    means = x.reshape(4, -1).mean(1)
    assert min((s - means).abs().max().item() for s in starts) < 1e-6


@pytest.mark.parametrize("kind", ["normal", "multivariate"])
def test_kmeans_on_vectors(kind):
    x = clusters(dims=2) * f64([1.0, 100.0])  # neither dimension drowns the other

    def model(x):
        weights = pyro.param("weights", torch.full((4,), 0.25), constraint=simplex)
        locs = pyro.param("locs", 1000 + torch.arange(8.0).reshape(4, 2))
        if kind == "normal":
            scale = pyro.param("scale", f64([10.0, 10.0]), constraint=positive)
        else:
            scale = pyro.param("scale", 10 * torch.eye(2), constraint=lower_cholesky)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            if kind == "normal":
                pyro.sample("x", dist.Normal(locs[z], scale).to_event(1), obs=x)
            else:
                pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=scale), obs=x)

    result = run(model, x, start=KMeans("x"), restarts=3)
    found = result.params["locs"]
    torch.testing.assert_close(found[found[:, 0].argsort()][:, 0], TRUE, atol=0.4, rtol=0)


def test_kmeans_reaches_the_gold_maximum():
    result = run(gaussian_mixture.model, *gaussian_mixture.load(), start=KMeans("x"), tol=1e-6)
    assert result.objective == pytest.approx(-1130.2639602, abs=1e-4)


def test_kmeans_with_missing_rows():
    def model(x):
        with poutine.mask(mask=~torch.isnan(x)):
            mixture(x)

    x = clusters()
    x[::10] = torch.nan
    result = run(model, x, start=KMeans("x"), restarts=4)
    torch.testing.assert_close(result.params["locs"].sort().values, TRUE, atol=0.4, rtol=0)


def test_kmeans_on_a_site_of_an_opaque_model():
    x = clusters()[30:90]
    result = run(gated(network()), x, start=KMeans("x"), restarts=2, max_steps=5)
    torch.testing.assert_close(result.params["locs"].sort().values, TRUE[1:3], atol=0.4, rtol=0)


@pytest.mark.parametrize("site", ["y", "z", "weights", ""])
@pytest.mark.parametrize("make", [lambda: mixture, lambda: gated(network())], ids=["compiled", "traced"])
def test_kmeans_needs_an_observed_site(site, make):
    with pytest.raises(ModelError, match=f"{site!r}"):
        run(make(), clusters(), start=KMeans(site))


def test_kmeans_needs_one_latent():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.5))
            b = pyro.sample("b", dist.Bernoulli(pyro.param("p", f64(0.4), constraint=unit_interval)))
            pyro.sample("x", dist.Normal(a + 2.0 * b, 1.0), obs=x)

    with pytest.raises(ModelError, match="one latent; 'x'"):
        run(model, clusters(), start=KMeans("x"))


def test_kmeans_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ModelError, match="pip install scikit-learn"):
        run(mixture, clusters(), start=KMeans("x"))


def test_kmeans_with_fewer_data_than_states():
    """k-means++ has only as many seeds as there are data. Here each datum gets one, and nothing is left to scatter."""
    with pytest.raises(DegenerateError, match="'scale'"):
        run(mixture, f64([0.0, 5.0]), start=KMeans("x"), max_steps=30)


# Random starts on any model -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [RandomResponsibilities(), RandomResponsibilities(rows=6)])
def test_random_responsibilities_on_gaussians(start):
    result = run(mixture, clusters(), restarts=8, start=start)
    torch.testing.assert_close(result.params["locs"].sort().values, TRUE, atol=0.4, rtol=0)


@pytest.mark.parametrize("start", [None, RandomResponsibilities(rows=6), RandomDraws()])
def test_starts_on_poissons(start):
    """From nearly equal rates."""
    result = run(poissons, counts(), restarts=8, start=start, tol=1e-4)
    torch.testing.assert_close(result.params["rates"].sort().values, f64([1.0, 8.0, 25.0]), atol=2.0, rtol=0)


@pytest.mark.parametrize("start", [None, RandomResponsibilities(rows=6), RandomDraws()])
def test_starts_on_latent_classes(start):
    """The model's own start has equal classes, which EM does not leave: only restarts can."""
    x = answers()
    assert run(classes, x).params["probs"].diff(dim=0).abs().max() < 1e-6
    probs = run(classes, x, restarts=4, start=start).params["probs"]
    truth = f64([0.9, 0.8, 0.9, 0.1, 0.2, 0.1])
    found = probs[probs[:, 0].argmax()]
    torch.testing.assert_close(found, truth, atol=0.2, rtol=0)


@pytest.mark.parametrize("start", [None, RandomResponsibilities(rows=8), RandomDraws(), KMeans("x_2")])
def test_starts_on_chains(start):
    """KMeans labels every latent, and finds the same clusters whatever its seeds."""
    result = run(chains, sequences(), restarts=4, start=start, max_steps=40)
    assert len(starts_of(result).unique()) == (1 if isinstance(start, KMeans) else 4)
    torch.testing.assert_close(result.params["locs"].sort().values, f64([-4.0, 4.0]), atol=0.6, rtol=0)
    torch.testing.assert_close(result.params["trans"].sum(-1), torch.ones(2))


@pytest.mark.parametrize("start", [None, RandomResponsibilities(rows=10), RandomDraws(0.5)])
def test_starts_on_a_network(start):
    x = clusters()[30:90]
    before = torch.nn.utils.parameters_to_vector((net := network()).parameters()).detach().clone()
    result = run(gated(net), x, restarts=3, start=start, max_steps=3)
    assert len(starts_of(result).unique()) == 3
    assert result.objective == pytest.approx(result.history.objective.max(), abs=1e-8)
    assert torch.equal(before, torch.nn.utils.parameters_to_vector(net.parameters()))


def test_random_draws_without_latents():
    def model(x):
        loc = pyro.param("loc", f64(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    for start in (RandomDraws(), RandomResponsibilities()):
        result = run(model, clusters(), restarts=2, start=start)
        assert result.params["loc"].item() == pytest.approx(clusters().mean().item(), abs=1e-6)


def test_random_draws_of_no_scale_are_the_models_own_start():
    plain, drawn = run(mixture, clusters(), max_steps=0), run(mixture, clusters(), max_steps=0, start=RandomDraws(0.0))
    torch.testing.assert_close(drawn.params, plain.params, atol=1e-12, rtol=0)


# Starts of one's own --------------------------------------------------------------------------------------


class Shifted:
    """Moves by a fixed amount in unconstrained coordinates, and counts how often it was asked."""

    def __init__(self, by):
        self.by, self.calls = by, 0

    def place(self, engine):
        self.calls += 1
        engine.move_to(engine.coordinates() + self.by)


@pytest.mark.parametrize("make", [lambda: mixture, lambda: gated(network())], ids=["compiled", "traced"])
def test_a_start_of_ones_own(make):
    """Moved by the same amount, a location moves by it and a scale by its exponential."""
    start, model = Shifted(0.25), make()
    plain, moved = run(model, clusters(), max_steps=0), run(model, clusters(), max_steps=0, start=start)
    assert start.calls == 1
    assert moved.objective == pytest.approx(run(model, clusters(), max_steps=0, init=moved).objective, abs=1e-9)
    torch.testing.assert_close(moved.params["locs"], plain.params["locs"] + 0.25)
    torch.testing.assert_close(moved.params["scale"].log(), plain.params["scale"].log() + 0.25)
    run(model, clusters(), max_steps=1, start=start, restarts=3)
    assert start.calls == 4


def test_a_start_of_ones_own_places_labels():
    """By the quarter of the data each row lies in."""

    class Quarters:
        def place(self, engine):
            (latent,) = engine.variables()
            engine.place({latent.name: torch.arange(4).repeat_interleave(30)}, {})

    x = clusters()
    start = run(mixture, x, start=Quarters(), max_steps=0).params
    torch.testing.assert_close(start["locs"], x.reshape(4, -1).mean(1), atol=1e-9, rtol=0)
    torch.testing.assert_close(start["weights"], torch.full((4,), 0.25), atol=1e-9, rtol=0)
    assert run(mixture, x, start=Quarters()).converged


def test_a_start_that_fails_leaves_nothing_behind():
    class Broken:
        def place(self, engine):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(mixture, clusters(), start=Broken())
    assert not dict(pyro.get_param_store())


# Hyperparameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"restarts": 0}, ValueError, "restarts must be at least 1; got 0"),
        ({"restarts": -2}, ValueError, "restarts.*-2"),
        ({"start": "kmeans"}, TypeError, r"start must be a start object, such as KMeans\('x'\).*'kmeans'"),
        ({"start": 3}, TypeError, "start must be.*got 3"),
        ({"accelerate": "anderson"}, ValueError, "accelerate.*'squarem' or None.*'anderson'"),
        ({"accelerate": True}, ValueError, "accelerate.*True"),
        ({"on_degenerate": "ignore"}, ValueError, "on_degenerate.*'floor'.*'restart'.*'ignore'"),
        ({"on_degenerate": None}, ValueError, "on_degenerate.*None"),
    ],
)
def test_hyperparameters(options, error, match):
    with pytest.raises(error, match=match):
        EM(**options)
