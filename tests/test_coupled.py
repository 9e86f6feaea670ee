"""Newton's method over arguments that move together, against derivatives of torch's and L-BFGS."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex
from torch.distributions import biject_to

from pyro_em import EM, GradientMStep, fit
from pyro_em.families.base import expected_log_likelihood
from pyro_em.families.beta import Beta
from pyro_em.families.coupled import Elements, Reach, expansion, newton_coupled
from pyro_em.families.gamma import Gamma
from pyro_em.families.negative_binomial import NegativeBinomial

f64 = partial(torch.tensor, dtype=torch.float64)
N = 40
FULL = GradientMStep(
    partial(
        torch.optim.LBFGS, max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )
)

# The method ---------------------------------------------------------------------------------------


def problem(family, x, reach):
    """Weighted data; the first argument is one of two values, or a constant, and the second as ``reach`` has it."""
    torch.manual_seed(0)
    weights = torch.rand(N, 1, dtype=torch.float64)
    stats = torch.cat([family.features(x), torch.ones(1, N, dtype=torch.float64)]).T * weights
    index = torch.arange(N) % 3 - 1
    chart = biject_to(family.args[0].domain)
    first = Reach(chart, torch.full((N,), 0.3, dtype=torch.float64), index=index)
    return Elements(family, stats, {family.args[0].name: first, family.args[1].name: reach})


def lines(value):
    torch.manual_seed(1)
    design = torch.stack([torch.ones(N), torch.randn(N)], -1).to(torch.float64)
    return Reach(value, torch.full((N,), 0.1, dtype=torch.float64), columns=torch.tensor([2, 3]), design=design)


def draws():
    torch.manual_seed(2)
    wait = dist.Gamma(f64(5.0), f64(2.0)).sample((N,))
    return {
        "gamma": (Gamma(), wait, torch.exp),
        "beta": (Beta(), torch.sigmoid(wait - 2), torch.exp),
        "negative binomial": (NegativeBinomial(tuple(range(1, 61))), torch.poisson(wait), torch.sigmoid),
    }


each_family = pytest.mark.parametrize("name", draws())


def terms(piece, at):
    args = {n: r.value(r.predictor(at)) for n, r in piece.reaches.items()}
    return expected_log_likelihood(piece.family, piece.stats, args).sum()


@each_family
def test_it_ends_where_nothing_is_left_to_gain(name):
    family, x, value = draws()[name]
    pieces = problem(family, x, lines(value))
    at = newton_coupled(lambda: (pieces,), f64([0.1, 0.5, 0.2, -0.1]), torch.zeros(4) > 1, torch.full((4,), math.inf))
    _, slope, curvature = expansion(partial(terms, pieces), at)
    assert slope.abs().max() < 1e-7
    assert torch.linalg.eigvalsh(curvature).max() < 0


@each_family
def test_pieces_bounds_and_priors_add_up(name):
    """The same data in two pieces, coefficients as exponentials, and a prior: the end is that of L-BFGS."""
    family, x, value = draws()[name]
    whole = problem(family, x, lines(value))

    def part(rows):
        reaches = {
            n: Reach(r.value, r.offset[rows], *(None if t is None else t[rows] for t in (r.index,)), r.columns, None)
            if r.design is None
            else Reach(r.value, r.offset[rows], columns=r.columns, design=r.design[rows])
            for n, r in whole.reaches.items()
        }
        return Elements(family, whole.stats[rows], reaches)

    pieces = (part(slice(0, 13)), part(slice(13, N)))

    def chart(at):
        return torch.cat([at[:2], at[2:].exp()])

    def prior(at):
        return -0.5 * (at - 0.2).square().sum() - at.exp().sum()

    start = f64([0.1, 0.5, -0.2, -0.4])
    at = newton_coupled(lambda: pieces, start, torch.zeros(4) > 1, torch.full((4,), math.inf), chart, prior)

    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([leaf], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -terms(whole, chart(leaf)) - prior(leaf)
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(at, leaf.detach(), rtol=1e-5, atol=1e-5)


def test_a_top_is_kept_and_the_others_go_on():
    family, x, value = draws()["gamma"]
    pieces = problem(family, x, lines(value))
    top = f64([0.5, math.inf, math.inf, math.inf])
    at = newton_coupled(lambda: (pieces,), f64([0.1, 0.5, 0.2, -0.1]), torch.zeros(4) > 1, top)
    assert float(at[0]) == 0.5
    _, slope, _ = expansion(partial(terms, pieces), at)
    assert float(slope[0]) > 1 and slope[1:].abs().max() < 1e-7


# Fits ---------------------------------------------------------------------------------------------


def dispersed(x, y):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    counts = pyro.param("counts", f64([3.0, 6.0]), constraint=positive)
    start, slope = pyro.param("start", f64([-0.5, 0.5])), pyro.param("slope", f64(0.1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.NegativeBinomial(counts[z], logits=start[z] + slope * x), obs=y)


def exposed(x, y):
    rates = pyro.param("rates", f64([0.5, 3.0]), constraint=positive)
    level = pyro.param("level", f64([2.0, 3.0]), constraint=positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
        pyro.sample("y", dist.Gamma(level[z], rates[z] * (1.2 + x)), obs=y)


def believed(x, y):
    level = pyro.sample("level", dist.LogNormal(f64([0.5, 1.0]), f64(0.7)).to_event(1))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
        pyro.sample("y", dist.Gamma(level[z], (beta[z] * x).exp()), obs=y)


def robust(x, y):
    start, slope = pyro.param("start", f64([-1.0, 1.0])), pyro.param("slope", f64(0.1))
    width = pyro.param("width", f64(1.0), constraint=positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
        pyro.sample("y", dist.StudentT(f64(4.0), start[z] + slope * x, width), obs=y)


def sampled(name):
    torch.manual_seed(3)
    x = torch.rand(120, dtype=torch.float64)
    high = torch.rand(120) < 0.4
    y = dist.Gamma(f64(3.0), torch.where(high, 0.4, 2.0).to(torch.float64)).sample()
    return {"dispersed": (x, torch.poisson(2 * y)), "robust": (x, torch.where(high, 3.0, 0.0) + x + y.log())}.get(
        name, (x, y)
    )


FITS = {"dispersed": dispersed, "exposed": exposed, "believed": believed, "robust": robust}
each_fit = pytest.mark.parametrize("name", FITS)


@each_fit
def test_a_fit_ends_where_the_full_gradient_finds_nothing(name):
    data = sampled(name)
    found = fit(FITS[name], *data, strategy=EM(tol=1e-8, max_steps=3000, accelerate="squarem"), progress=False)
    assert "gradient" not in found.explain().owner.tolist() and "statistics" not in found.explain().owner.tolist()
    on = fit(FITS[name], *data, strategy=EM(m_step=FULL, max_steps=20, tol=0), init=found, progress=False)
    assert on.objective <= found.objective + 1e-5
    assert found.objective > fit(FITS[name], *data, strategy=EM(max_steps=0), progress=False).objective + 1


@each_fit
@pytest.mark.parametrize("size", [17, 119])
def test_batches_are_the_whole(name, size):
    whole, parts = (
        fit(FITS[name], *sampled(name), strategy=EM(max_steps=6, tol=0, **b), progress=False)
        for b in ({}, {"batch_size": size})
    )
    assert parts.history.objective.tolist() == pytest.approx(whole.history.objective.tolist(), abs=1e-7)
    for n, value in whole.params.items():
        torch.testing.assert_close(parts.params[n], value, rtol=1e-6, atol=1e-6)
