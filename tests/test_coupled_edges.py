"""Arguments that move together at the edges: components without data, kinks, signs, bounds, floors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex
from test_coupled import FULL, f64, sampled

from pyro_em import EM, fit


def agree_with_the_gradient(model, *data, steps=4, init=None, atol=1e-4):
    own, full = (
        fit(model, *data, strategy=EM(m_step=m, max_steps=steps, tol=0), init=init, progress=False)
        for m in (None, FULL)
    )
    assert own.objective >= full.objective - atol
    return own


def test_a_component_without_data_stays():
    """Its coefficients have next to no slope and no curvature, whose ratio is anything."""
    torch.manual_seed(0)
    x, y = torch.rand(80, dtype=torch.float64), dist.Gamma(f64(3.0), f64(1.0)).sample((80,))

    def model(x, y):
        weights = pyro.param("weights", torch.full((3,), 1 / 3, dtype=torch.float64), constraint=simplex)
        level = pyro.param("level", f64([2.0, 5.0, 1e5]), constraint=positive)
        start, slope = pyro.param("start", f64([0.0, 0.5, -3.0])), pyro.param("slope", f64([0.0, 0.1, 0.0]))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("y", dist.Gamma(level[z], (start[z] + slope[z] * x).exp()), obs=y)

    found = fit(model, x, y, strategy=EM(max_steps=10, tol=0), progress=False)
    assert found.history.objective.is_monotonic_increasing
    assert float(found.params["level"][2]) == pytest.approx(1e5) and float(found.params["start"][2]) == pytest.approx(
        -3.0
    )


@pytest.mark.parametrize("family", ["logistic", "normal"])
def test_priors_with_a_kink_are_not_for_newton(family):
    """A Laplace prior takes coefficients to exactly zero, where it has no curvature."""
    torch.manual_seed(0)
    x = torch.randn(120, 3, dtype=torch.float64)
    line = x @ f64([0.8, 0.5, 0.0])
    y = torch.bernoulli(torch.sigmoid(line)) if family == "logistic" else line + torch.randn(120)

    def model(x, y):
        beta = pyro.sample("beta", dist.Laplace(torch.zeros(3, dtype=torch.float64), 0.1).to_event(1))
        fn = dist.Bernoulli(logits=x @ beta) if family == "logistic" else dist.Normal(x @ beta, 1.0)
        with pyro.plate("data", len(y)):
            pyro.sample("y", fn, obs=y)

    found = agree_with_the_gradient(model, x, y, steps=8, init={"beta": f64([0.1, 0.1, 0.1])}, atol=0.02)
    assert found.explain().owner.tolist() == ["statistics"]


@pytest.mark.parametrize("name", ["selected", "affine"])
def test_a_square_of_a_negative_parameter_keeps_its_prior(name):
    _, y = sampled("exposed")
    x = torch.rand(len(y), dtype=torch.float64)

    def model(x, y):
        root = pyro.sample("root", dist.Normal(f64([-1.5, -1.0]), 0.3).to_event(1))
        level = pyro.param("level", f64([2.0, 5.0]), constraint=positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
            slope = pyro.param("slope", f64(0.1)) if name == "affine" else None
            fn = dist.Gamma(level[z], root[z] ** 2) if slope is None else dist.Gamma(root[z] ** 2, (slope * x).exp())
            pyro.sample("y", fn, obs=y)

    found = agree_with_the_gradient(model, x, y, init={"root": f64([-1.5, -1.0])}, atol=0.02)
    assert (found.params["root"] < 0).all() and found.history.objective.is_monotonic_increasing


def test_a_prior_on_an_element_that_no_state_uses():
    _, y = sampled("exposed")

    def model(y):
        level = pyro.sample("level", dist.LogNormal(f64([0.5, 1.0, 2.0]), 0.7).to_event(1))
        rate = pyro.param("rate", f64([1.0, 2.0]), constraint=positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
            pyro.sample("y", dist.Gamma(level[z], rate[z]), obs=y)

    found = agree_with_the_gradient(model, y, init={"level": f64([2.0, 3.0, 4.0])}, atol=0.02)
    assert float(found.params["level"][2]) == pytest.approx(math.exp(2.0 - 0.49), rel=1e-4)  # the prior's mode


@pytest.mark.parametrize("kind", ["tensor bounds", "uniform", "uniform matrix"])
def test_bounds_of_any_shape(kind):
    torch.manual_seed(0)
    x = torch.rand(60, 3, dtype=torch.float64)
    y = x @ f64([0.3, 0.6, 0.9]) + 0.3 * torch.randn(60)
    high = f64([1.0, 2.0, 3.0])

    def model(x, y):
        if kind == "tensor bounds":
            start = torch.full((2, 3), 0.5, dtype=torch.float64)
            beta = pyro.param("beta", start, constraint=dist.constraints.interval(torch.zeros(3), high))
        elif kind == "uniform":
            beta = pyro.sample("beta", dist.Uniform(f64(0.0), f64(1.0)).expand([2, 3]).to_event(2))
        else:
            beta = pyro.sample("beta", dist.Uniform(torch.zeros(2, 3), high.expand(2, 3)).to_event(2))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
            pyro.sample("y", dist.Normal((beta[z] * x).sum(-1), 0.4), obs=y)

    init = None if kind == "tensor bounds" else {"beta": f64([[0.5, 0.4, 0.6], [0.3, 0.6, 0.7]])}
    found = agree_with_the_gradient(model, x, y, init=init, atol=1e-6)
    assert (found.params["beta"] > 0).all() and (found.params["beta"] < high).all()


def test_sweeps_end_beside_a_scale_at_its_floor():
    """Terms are a million times as large there, and cancel."""
    torch.manual_seed(0)
    x = torch.rand(44, dtype=torch.float64)
    y = torch.randn(44, dtype=torch.float64)
    y[:4] = 2.0 + 0.5 * x[:4]

    def model(x, y):
        weights = pyro.param("weights", f64([0.8, 0.2]), constraint=simplex)
        start, slope = pyro.param("start", f64([0.0, 2.0])), pyro.param("slope", f64([0.1, 0.45]))
        width, df = (
            pyro.param("width", f64([1.0, 0.05]), constraint=positive),
            pyro.param("df", f64(4.0), constraint=positive),
        )
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("y", dist.StudentT(df, start[z] + slope[z] * x, width[z]), obs=y)

    found = fit(model, x, y, strategy=EM(on_degenerate="floor", max_steps=60, tol=0), progress=False)
    assert found.history.objective.diff().min() > -1e-6
