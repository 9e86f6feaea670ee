"""Restarts share one preparation, and each is what it would be if it had been prepared alone."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import interval, positive, simplex
from torch.utils.data import DataLoader, TensorDataset

from models import gaussian_hmm, latent_class, regression_mixture
from pyro_em import EM, KMeans, ModelError, RandomDraws, RandomResponsibilities, fit
from pyro_em.em import opening

f64 = partial(torch.tensor, dtype=torch.float64)
run = partial(fit, seed=0, progress=False)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.cat([torch.randn(20, generator=GENERATOR, dtype=torch.float64) + c for c in (-4.0, 0.0, 5.0)])


def normals(x, spread=positive):
    weights = pyro.param("weights", f64([0.2, 0.3, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 0.5, 2.0]))
    scales = pyro.param("scales", f64([1.0, 2.0, 3.0]), constraint=spread)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def bayesian(x):
    """Latents that are point-estimated start where their priors draw them."""
    weights = pyro.sample("weights", dist.Dirichlet(f64([2.0, 2.0])))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def drawn(x):
    """Initial values drawn in a lambda, as an argument, and between two sites."""
    weights = pyro.param("weights", lambda: torch.rand(3).softmax(0), constraint=simplex)
    locs = pyro.param("locs", 3 * torch.randn(3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        scales = pyro.param("scales", lambda: 1 + torch.rand(3), constraint=positive)
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def gated(net):
    """A model that is run anew for each number."""

    def model(x):
        pyro.module("net", net)
        locs = pyro.param("locs", f64([0.4, 0.5]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=net(x.unsqueeze(-1))))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    return model


class Own:
    """The model's own initial values, in every restart."""

    def place(self, engine):
        pass


class Points:
    """Given points, one for each restart."""

    def __init__(self, points):
        self.points = iter(points)

    def place(self, engine):
        engine.move_to(next(self.points))


def points_of(model, args, count, scale):
    """Points about the model's own start, in the engine's coordinates."""
    seen = []

    class Seen:
        def place(self, engine):
            seen.append(engine.coordinates())

    run(model, *args, strategy=EM(max_steps=0, start=Seen()))
    generator = torch.Generator().manual_seed(1)
    return [seen[0] + scale * torch.randn(len(seen[0]), generator=generator) for _ in range(count)]


@pytest.fixture
def prepared(monkeypatch):
    """Counts preparations."""
    counts = []
    anew = opening._anew
    monkeypatch.setattr(opening, "_anew", lambda *args: (counts.append(1), anew(*args))[1])
    return counts


def both_ways(monkeypatch, *args, **options):
    """Fits with and without sharing."""
    shared = run(*args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "TensorEngine", Own)  # no engine is known again
        alone = run(*args, **options)
    return shared, alone


def objectives(history):
    return torch.tensor(history.objective.tolist(), dtype=torch.float64)


def same(one, other):
    assert one.history[["step", "restart"]].equals(other.history[["step", "restart"]])
    first, second = (objectives(r.history) for r in (one, other))
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.params, other.params, rtol=1e-10, atol=1e-10)
    assert one.objective == pytest.approx(other.objective, rel=1e-10)
    assert one.status is other.status


SERIES = gaussian_hmm.simulate(1, 28)[0][:, :14]
CASES = {
    "normals": (normals, (X,), {}),
    "squarem": (normals, (X,), {"accelerate": "squarem"}),
    "fixed": (normals, (X,), {"fixed": "locs", "start": RandomDraws(0.2), "on_degenerate": "floor"}),
    "drop": (normals, (X,), {"on_degenerate": "drop", "start": RandomResponsibilities(rows=1)}),
    "restart": (normals, (X,), {"on_degenerate": "restart", "restarts": 1, "start": RandomResponsibilities(rows=1)}),
    "k-means": (normals, (X,), {"start": KMeans("x")}),
    "constraints": (lambda x: normals(x, interval(f64(0.01), f64(100.0))), (X,), {}),  # another object in each run
    "a chain": (gaussian_hmm.model, (SERIES,), {}),
    "answers": (latent_class.model, latent_class.simulate(60), {"start": RandomDraws()}),
    "regressions": (regression_mixture.model, regression_mixture.load(), {"on_degenerate": "floor"}),
    "batches": (normals, (X,), {"batch_size": 25}),
    "a loader": (normals, (DataLoader(TensorDataset(X), batch_size=32, shuffle=True),), {}),
    "priors": (bayesian, (X,), {}),
    "drawn": (drawn, (X,), {"start": Own()}),
    "drawn, in batches": (drawn, (X,), {"start": Own(), "batch_size": 32}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_restart_is_what_it_is_when_prepared_alone(case, monkeypatch, prepared):
    model, args, options = case
    strategy = EM(**{"restarts": 3, "max_steps": 6, **options})
    shared, alone = both_ways(monkeypatch, model, *args, strategy=strategy)
    same(shared, alone)
    assert prepared == [1] * len(prepared) and len(prepared) > 2  # by the first and, one by one, by all of the second


@pytest.mark.parametrize("name", ["normals", "a chain", "priors", "batches"])
def test_restarts_are_single_fits_from_the_same_points(name):
    """The best goes on from its end for as long again."""
    model, args, options = CASES[name]
    batch = {"batch_size": options["batch_size"]} if "batch_size" in options else {}
    points = points_of(model, args, 3, 0.3)
    found = run(model, *args, strategy=EM(restarts=3, max_steps=20, tol=0, start=Points(points), **batch))
    singles = [run(model, *args, strategy=EM(max_steps=40, tol=0, start=Points([p]), **batch)) for p in points]
    best = max(range(3), key=lambda r: singles[r].history.objective[20])
    for restart, single in enumerate(singles):
        rows = objectives(found.history[found.history.restart == restart])
        assert len(rows) == (41 if restart == best else 21)
        torch.testing.assert_close(rows, objectives(single.history)[: len(rows)], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.params, singles[best].params, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("batch_size", [None, 25])
def test_weights(batch_size, monkeypatch, prepared):
    strategy = EM(restarts=3, batch_size=batch_size, max_steps=10)
    same(*both_ways(monkeypatch, normals, X, strategy=strategy, weights=torch.linspace(0.0, 2.0, len(X))))
    assert len(prepared) == 1 + 4


def test_large_data(monkeypatch, prepared):
    """Of which structure is read off the first rows, but initial values off all of them."""
    monkeypatch.setattr("pyro_em.em.checks.LARGE", 40)
    monkeypatch.setattr("pyro_em.em.checks.HEAD", 24)
    shared, alone = both_ways(monkeypatch, drawn, X, strategy=EM(restarts=3, start=Own(), max_steps=10))
    same(shared, alone)
    assert len(prepared) == 1 + 4


def test_programs_are_run_once_or_twice_a_restart():
    """To its end, only where a restart may be the best; for its initial values, as far as these go."""
    counts = {"begun": 0, "ended": 0}

    def counted(x):
        counts["begun"] += 1
        gaussian_hmm.model(x)
        counts["ended"] += 1

    def runs(restarts):
        counts.update(begun=0, ended=0)
        run(counted, SERIES, strategy=EM(restarts=restarts, max_steps=20, tol=0))
        return dict(counts)

    few, many = runs(2), runs(12)
    assert 10 <= many["begun"] - few["begun"] <= 20
    assert many["ended"] - few["ended"] <= 10


@pytest.mark.parametrize("make", [lambda: drawn, lambda: bayesian, lambda: gated(torch.nn.Linear(1, 2))])
def test_initial_values_that_are_drawn_are_drawn_anew(make):
    model = make()
    history = run(model, X, strategy=EM(restarts=5, start=Own(), max_steps=1)).history
    starts = history[history.step == 0].objective
    assert len(starts) == 5 and len(set(starts)) == (5 if model in (drawn, bayesian) else 1)


def test_initial_values_from_a_generator_of_ones_own():
    own = torch.Generator().manual_seed(3)

    def model(x):
        locs = pyro.param("locs", lambda: torch.randn(2, generator=own, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5)).long()
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    history = run(model, X, strategy=EM(restarts=4, start=Own(), max_steps=1)).history
    assert history[history.step == 0].objective.nunique() == 4


# Programs that do otherwise elsewhere ---------------------------------------------------------------------

FAR = 50.0


def hiding(x, locs=None):
    """A spread that depends on the parameters in a way that no probe sees."""
    locs = pyro.param("locs", lambda: f64([-1.0, 1.0]) if locs is None else locs())
    scale = 4.0 if bool(locs.detach()[0] > FAR) else 1.0
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3)).long()
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def evidence_of_hiding(x, locs):
    scale = 4.0 if locs[0] > FAR else 1.0
    terms = dist.Normal(locs, scale).log_prob(x.unsqueeze(-1)) + f64([0.7, 0.3]).log()
    return terms.logsumexp(-1).sum().item()


def two_clusters():
    """By the tensors, more likely with the first location at 100; by the program, with the second."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(40, generator=generator, dtype=torch.float64)
    return noise + f64([-100.0] * 12 + [100.0] * 28)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (1, 3, 2, 0)])
def test_a_restart_that_ends_in_another_branch_does_not_win_by_the_tensors(order, monkeypatch):
    x = two_clusters()
    points = [f64([-1.0, 1.0]), f64([90.0, -90.0]), f64([-80.0, 70.0]), f64([110.0, -30.0])]
    strategy = EM(restarts=4, max_steps=30, start=Points([points[i] for i in order] * 2))
    for found in both_ways(monkeypatch, hiding, x, strategy=strategy):
        assert found.params["locs"][0] < 0 < found.params["locs"][1]
        assert found.objective == pytest.approx(evidence_of_hiding(x, found.params["locs"]), rel=1e-9)
        assert found.log_evidence == pytest.approx(found.objective, rel=1e-12)


def test_a_best_restart_in_another_branch_goes_on_by_the_program():
    x = two_clusters()
    found = run(hiding, x, strategy=EM(restarts=2, start=Points([f64([90.0, -90.0]), f64([110.0, -30.0])])))
    assert found.params["locs"][0] > FAR and found.converged
    assert found.objective == pytest.approx(evidence_of_hiding(x, found.params["locs"]), rel=1e-9)


def test_initial_values_in_another_branch_are_prepared_anew(monkeypatch, prepared):
    """The second restart, by its own initial values, is where the program says otherwise."""
    x, starts = two_clusters(), [f64([-30.0, 20.0]), f64([90.0, -90.0]), f64([-20.0, 30.0])]

    def fitted():
        own = iter(starts)
        return run(partial(hiding, locs=lambda: next(own)), x, strategy=EM(restarts=3, start=Own(), max_steps=8))

    shared = fitted()
    assert len(prepared) == 2
    monkeypatch.setattr(opening, "TensorEngine", Own)
    for found in (shared, fitted()):
        began = found.history[found.history.step == 0].objective
        assert began.tolist() == pytest.approx([evidence_of_hiding(x, s) for s in starts], rel=1e-10)
        assert found.objective == pytest.approx(evidence_of_hiding(x, found.params["locs"]), rel=1e-9)


def test_another_site_in_a_restart_is_refused_as_in_a_first_run():
    attempts = []

    def model(x):
        locs = pyro.param("locs", lambda: (attempts.append(1), torch.randn(2))[1])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5)).long()
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0)) if len(attempts) > 1 else 0.0
            pyro.sample("x", dist.Normal(locs[z] + shift, 1.0), obs=x)

    with pytest.raises(ModelError, match="'shift' is Normal"):
        run(model, X, strategy=EM(restarts=2, start=Own()))
