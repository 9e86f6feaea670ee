"""SQUAREM takes EM's path in fewer steps: to the same optimum, and never down."""

from functools import partial
from statistics import median

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval

from models import gaussian_mixture, latent_class, poisson_mixture
from pyro_em import EM, GradientMStep, RandomDraws, fit

f64 = partial(torch.tensor, dtype=torch.float64)
COUNTS = torch.tensor([162, 267, 271, 185, 111, 61, 27, 8, 3, 1])  # Hasselblad (1969): days with 0 to 9 deaths
DEATHS = torch.arange(10).to(torch.float64).repeat_interleave(COUNTS)
MAXIMUM = -1989.9458598830


def normals(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    scales = pyro.param("scales", f64([1.0, 1.0]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def classes(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    start = torch.linspace(0.2, 0.8, 2 * x.shape[1]).reshape(2, -1)
    probs = pyro.param("probs", start, constraint=unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)


def chain(x):
    init = pyro.param("init", f64([0.4, 0.6]), constraint=simplex)
    trans = pyro.param("trans", f64([[0.7, 0.3], [0.4, 0.6]]), constraint=simplex)
    locs = pyro.param("locs", f64([-0.5, 1.0]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=x[:, t])


def gated(x):
    """Mixing weights from a small network: no closed form reaches its parameters."""
    hidden, out = pyro.param("hidden", f64([0.3, -0.2])), pyro.param("out", f64([0.2, -0.1]))
    locs = pyro.param("locs", f64([-0.5, 0.5]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        odds = out[0] + out[1] * torch.tanh(hidden[0] + hidden[1] * x)
        z = pyro.sample("z", dist.Categorical(logits=torch.stack([odds, -odds], -1)))
        pyro.sample("y", dist.Normal(locs[z], scale), obs=torch.where(x > 0, 1.5, -1.5) + 0.7 * torch.sin(17 * x))


def bayesian(x):
    """Global latents with priors, so that the objective is the log joint."""
    weights = pyro.sample("weights", dist.Dirichlet(f64([3.0, 2.0])))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.3), obs=x)


def points():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(150, generator=generator, dtype=torch.float64)
    return torch.cat([x[:50] - 1.2, x[50:] + 1.2])


def answers():
    """Some questions that all of a kind answer alike, one that everybody does."""
    generator = torch.Generator().manual_seed(4)
    probs = f64([[0.9, 0.8, 1.0, 0.0, 0.4, 1.0], [0.1, 0.3, 0.0, 0.7, 1.0, 1.0]]).repeat_interleave(40, 0)
    return torch.bernoulli(probs, generator=generator)


def sequences():
    generator = torch.Generator().manual_seed(5)
    z = torch.rand(20, 1, generator=generator) + 0.3 * torch.rand(20, 6, generator=generator) < 0.6
    return torch.where(z, 1.0, -1.0) + 0.7 * torch.randn(20, 6, generator=generator, dtype=torch.float64)


CASES = {
    "normals": (normals, points),
    "faithful": (gaussian_mixture.model, lambda: gaussian_mixture.load()[0]),
    "classes": (classes, answers),
    "chain": (chain, sequences),
    "network": (gated, lambda: points()[::4]),
    "priors": (bayesian, points),
}
each_case = pytest.mark.parametrize(("model", "data"), CASES.values(), ids=CASES)


def run(model, x, init=None, seed=0, **options):
    return fit(model, x, strategy=EM(**options), init=init, seed=seed, progress=False)


def squarem(model, x, **options):
    return run(model, x, accelerate="squarem", **options)


def starts(num):
    """For Hasselblad's deaths, anywhere: weights on the interval, rates up to the largest count and beyond."""
    generator = torch.Generator().manual_seed(1)
    for u in torch.rand(num, 3, generator=generator, dtype=torch.float64):
        w = 0.05 + 0.9 * u[0]
        yield {"weights": torch.stack([w, 1 - w]), "rates": 0.1 + 12.0 * u[1:]}


# Speed ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_deaths_from_fifty_starts():
    """The textbook case: plain EM needs thousands of maps, SQUAREM about a hundred.

    Over all fifty starts the medians are 3410 (2030 to 3588) and 101 (55 to 172); plain EM is run from the first nine.
    """
    fast = [squarem(poisson_mixture.model, DEATHS, init=s, tol=1e-8, max_steps=20000) for s in starts(50)]
    plain = [run(poisson_mixture.model, DEATHS, init=s, tol=1e-8, max_steps=20000) for s in starts(9)]
    for result in [*fast, *plain]:
        assert result.converged
        assert result.objective == pytest.approx(MAXIMUM, abs=1e-6)
    steps = median(r.history.step.iloc[-1] for r in fast)
    assert steps < 150
    assert median(r.history.step.iloc[-1] for r in plain) > 2800


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6, 1e-8])
def test_the_tolerance_means_the_same(tol):
    for start in starts(3):
        result = squarem(poisson_mixture.model, DEATHS, init=start, tol=tol)
        assert result.converged
        assert -1e-9 < MAXIMUM - result.objective < tol + 1e-10


def test_steps_are_e_steps():
    """A cycle has two or three; the history has one row for a cycle."""
    history = squarem(normals, points(), tol=0, max_steps=30).history
    assert set(history.step.diff().iloc[1:]) <= {2, 3}
    assert history.step.iloc[-1] >= 30


# Safety ---------------------------------------------------------------------------------------------------


@each_case
def test_the_objective_never_falls(model, data):
    result = squarem(model, data(), tol=0, max_steps=24)
    gains = result.history.objective.diff().dropna()
    assert gains.min() >= -1e-10 * (1 + abs(result.objective))
    assert all(torch.isfinite(v).all() for v in result.params.values())


@each_case
def test_the_same_optimum(model, data):
    x = data()
    plain, fast = run(model, x, tol=1e-4, max_steps=3000), squarem(model, x, tol=1e-4, max_steps=3000)
    assert plain.converged and fast.converged
    assert fast.objective == pytest.approx(plain.objective, abs=2e-4)
    assert fast.n_steps <= 1.5 * plain.n_steps + 6
    assert run(model, x, max_steps=0, init=fast).objective == pytest.approx(fast.objective, abs=1e-8)


def test_wild_starts():
    """Extrapolations that overshoot are not taken."""
    x = points()
    for seed in range(4):
        result = squarem(normals, x, start=RandomDraws(2.0), seed=seed, on_degenerate="restart")
        assert result.history.objective.diff().dropna().min() > -1e-8
        assert all(torch.isfinite(v).all() for v in result.params.values())


# With the rest of EM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", ["weights", "locs", ("weights", "scales"), ("weights", "locs", "scales")])
def test_fixed_parameters(fixed):
    x = points()
    names = (fixed,) if isinstance(fixed, str) else fixed
    start = run(normals, x, max_steps=0).params
    plain, fast = run(normals, x, fixed=fixed, tol=1e-7), squarem(normals, x, fixed=fixed, tol=1e-7)
    assert fast.converged and fast.objective == pytest.approx(plain.objective, abs=1e-6)
    for name in start:
        assert torch.equal(fast.params[name], start[name]) == (name in names)


@pytest.mark.parametrize("fixed", ["hidden", ("out", "locs")])
def test_fixed_parameters_of_a_network(fixed):
    x = points()[::4]
    names = (fixed,) if isinstance(fixed, str) else fixed
    start = run(gated, x, max_steps=0).params
    result = squarem(gated, x, fixed=fixed, max_steps=6)
    for name in start:
        assert torch.equal(result.params[name], start[name]) == (name in names)


def test_probabilities_on_their_boundary():
    """A question that everybody answers alike has probability 1 from the first step; others only near the end."""
    x = answers()
    plain, fast = run(classes, x, tol=1e-7), squarem(classes, x, tol=1e-7)
    assert plain.converged and fast.converged
    assert fast.objective == pytest.approx(plain.objective, abs=1e-5)
    probs = fast.params["probs"]
    assert torch.isfinite(probs).all() and ((probs >= 0) & (probs <= 1)).all()
    torch.testing.assert_close(probs[:, 5], torch.ones(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(probs, plain.params["probs"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", [2, 5])
def test_probabilities_that_run_off_to_their_boundary(seed):
    """Their coordinates move for ever; the length of a step is not theirs to set, or a thousand maps do not do."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 300, True, generator=generator)
    probs = torch.tensor([[0.9, 0.8, 0.85, 0.7], [0.1, 0.2, 0.6, 0.5], [0.0, 0.9, 0.1, 1.0]])[z]
    x = torch.bernoulli(probs, generator=generator).long()
    model = partial(latent_class.model, num_levels=(2,) * 4, num_classes=3)
    result = squarem(model, x, tol=1e-7)
    assert result.converged and min(v.min() for v in result.params.values()) < 1e-6
    assert result.history.step.iloc[-1] < 500


def test_weights_on_their_boundary():
    """One component is not needed: its weight goes to zero."""
    x = 3.0 + torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(x):
        weights = pyro.param("weights", f64([0.3, 0.7]), constraint=simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(f64([0.0, 3.0])[z], 1.0), obs=x)

    plain, fast = run(model, x, tol=1e-8, max_steps=5000), squarem(model, x, tol=1e-8, max_steps=5000)
    assert fast.converged and fast.objective == pytest.approx(plain.objective, abs=1e-6)
    transitions = squarem(chain, torch.tensor([[-1.0], [1.0]]).repeat(4, 5) + 0.1 * sequences()[:8, :5], tol=1e-6)
    assert transitions.converged
    assert all(torch.isfinite(v).all() for v in transitions.params.values())


@each_case
def test_with_a_gradient_m_step(model, data):
    result = squarem(model, data(), m_step=GradientMStep(), max_steps=9, tol=0)
    assert result.history.objective.diff().dropna().min() >= -1e-8
    assert all(torch.isfinite(v).all() for v in result.params.values())


def test_single_precision():
    def model(x):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6], dtype=torch.float32), constraint=simplex)
        locs = pyro.param("locs", torch.tensor([-1.0, 1.5], dtype=torch.float32))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], torch.ones((), dtype=torch.float32)), obs=x)

    x = points().to(torch.float32)
    plain, fast = run(model, x, tol=1e-2), squarem(model, x, tol=1e-2)
    assert fast.objective == pytest.approx(plain.objective, abs=2e-2)
    assert all(v.dtype is torch.float32 for v in fast.params.values())


def test_with_restarts():
    history = squarem(poisson_mixture.model, DEATHS, restarts=3, start=RandomDraws(), tol=1e-6).history
    assert sorted(history.restart.unique()) == [0, 1, 2]
    assert history.objective.max() == pytest.approx(MAXIMUM, abs=1e-5)
    for _, rows in history.groupby("restart"):
        assert rows.objective.diff().dropna().min() > -1e-8
        assert rows.step.is_monotonic_increasing
