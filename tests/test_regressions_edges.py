"""Probabilities of exactly zero or one: the tensors of a fit say there what its program says."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval

from models import multinomial_mixture
from pyro_em import EM, GradientMStep, Status, fit
from pyro_em.families import FAMILIES
from pyro_em.graph.impossible import with_true_zeros

f64 = partial(torch.tensor, dtype=torch.float64)
fit = partial(fit, progress=False)
EDGE, COUNTS = f64([0.0, 0.3, 1.0]).unsqueeze(-1), f64([0.0, 1.0, 2.0, 3.0])
CORNERS = f64([[0.0, 0.3, 0.7], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
ROWS = f64([[0.0, 3.0, 0.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
# Distributions with batch (edges, 1), and data (data, *event).
ON_EDGES = {
    "Bernoulli": (dist.Bernoulli(EDGE), COUNTS[:2]),
    "Binomial": (dist.Binomial(3, EDGE), COUNTS),
    "Geometric": (dist.Geometric(EDGE, validate_args=False), COUNTS),
    "NegativeBinomial": (dist.NegativeBinomial(f64(1.5), EDGE, validate_args=False), COUNTS),
    "Poisson": (dist.Poisson(f64([[0.0], [2.0]]), validate_args=False), COUNTS),
    "ZeroInflatedPoisson": (dist.ZeroInflatedPoisson(f64(2.0), gate=EDGE), COUNTS),
    "Categorical": (dist.Categorical(CORNERS.unsqueeze(1)), COUNTS[:3]),
    "OneHotCategorical": (dist.OneHotCategorical(CORNERS.unsqueeze(1)), torch.eye(3).double()),
    "Multinomial": (dist.Multinomial(3, CORNERS.unsqueeze(1)), ROWS),
}
CLAMPED = ("Bernoulli", "Binomial", "Geometric", "NegativeBinomial")  # by torch, and so by their families


@pytest.mark.parametrize("name", ON_EDGES)
def test_natural_form_on_the_edge_is_the_density_of_the_program(name):
    fn, x = ON_EDGES[name]
    family = FAMILIES[type(fn)].of(fn, x)
    data = family.data(fn, x.expand(*fn.batch_shape[:-1], *x.shape) if name == "Binomial" else x)
    features = family.features(
        data.movedim(list(range(data.dim() - family.rank, data.dim())), list(range(family.rank)))
    )
    natural = family.coefficients(**family.arguments(fn))
    base = family.base_measure(data.movedim(-1, 0) if family.rank else data)
    found = (features.movedim(0, -1) * natural[..., :-1]).sum(-1) + natural[..., -1] + base
    expected = with_true_zeros(fn).log_prob(x)
    impossible = expected == -torch.inf
    assert bool(impossible.any()) == (name not in CLAMPED)
    assert (found[impossible] < -1e29).all()
    torch.testing.assert_close(found[~impossible], expected[~impossible], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["to_event", "mask", "expand"])
def test_zeros_are_found_inside_of_wrappers(kind):
    fn = {
        "to_event": dist.Categorical(CORNERS).to_event(1),
        "mask": dist.Categorical(CORNERS).mask(torch.tensor([True, False, True])),
        "expand": dist.Categorical(CORNERS).expand_by([2]).mask(torch.tensor(True)),
    }[kind]
    found = with_true_zeros(fn).log_prob(f64([0.0, 0.0, 0.0]))
    if kind == "mask":
        torch.testing.assert_close(found, f64([-torch.inf, 0.0, torch.log(f64(0.2))]))
    elif kind == "expand":
        torch.testing.assert_close(found, f64([-torch.inf, -torch.inf, torch.log(f64(0.2))]).expand(2, 3))
    else:
        assert found == -torch.inf


def answers(x):
    """Classes of persons from questions with three answers each, (N, D), joined to one event."""
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    probs = pyro.param("probs", lambda: f64([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]).unsqueeze(1).repeat(1, 8, 1), simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Categorical(probs[z]).to_event(1), obs=x)


def waits(x):
    """Geometric and binomial counts; one kind never waits, and never fails."""
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    probs = pyro.param("probs", f64([0.9, 0.2]), constraint=unit_interval)
    rates = pyro.param("rates", f64([0.9, 0.2]), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Geometric(probs[z]), obs=x[:, 0])
        pyro.sample("y", dist.Binomial(9, rates[z]), obs=x[:, 1])


def labelled(z):
    """A start that labels the latent."""

    class Labelled:
        def place(self, engine):
            engine.place({"z": z}, {})

    return Labelled()


X = multinomial_mixture.load()[0]
CASES = {
    "multinomial": (multinomial_mixture.model, X, (X[:, 2] == X.sum(-1)) & (X[:, 2] > 10)),
    "categorical": (
        answers,
        torch.tensor([[0] * 8] * 5 + [[0, 1, 2, 1, 2, 1, 2, 1], [1, 2, 1, 0, 1, 2, 1, 2]] * 3),
        None,
    ),
    "waits": (waits, f64([[0, 9]] * 6 + [[3, 2], [7, 4], [2, 3], [5, 1]]), None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_class_on_the_edge(name):
    """Tensors and program agree, so that the objective is the last of the history, and the fit converges."""
    model, x, z = CASES[name]
    z = torch.arange(len(x)) >= (5 if name == "categorical" else 6) if z is None else z
    for steps in (0, 3):
        found = fit(model, x, strategy=EM(max_steps=steps, tol=0, start=labelled(z.long())), seed=0)
        assert found.objective == found.history.objective.iloc[-1]
    assert any(((v < 1e-300) | (v > 1 - 1e-9)).any() for v in found.params.values())
    assert fit(model, x, strategy=EM(start=labelled(z.long()))).converged
    assert found.posterior().log_evidence == pytest.approx(found.objective, abs=1e-8)


def absent(y, x, z_times):
    """Zeros beyond those of the counts; the rate is times zero where a datum is absent."""
    odds, coefs = pyro.param("odds", f64(0.0)), pyro.param("coefs", f64([0.5, 0.0]))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(logits=odds))
        pyro.sample("y", dist.Poisson(z_times(z, x @ coefs)), obs=y)


def counted():
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.ones(80), torch.randn(80, generator=generator)], -1).double()
    y = torch.poisson((x @ f64([1.0, 0.5])).exp(), generator=generator)
    return torch.where(torch.rand(80, generator=generator) < 0.3, 0.0, y).double(), x


def times_zero(z, eta):
    return (1 - z) * eta.exp()


def zero_times_infinity(z, eta):
    """The square root of zero has no derivative."""
    return ((1 - z) * eta.exp()).sqrt().square()


def by_branches(z, eta):
    return torch.where(z == 1, 0.0, eta.exp())


@pytest.mark.parametrize("m_step", [None, GradientMStep()])
def test_a_rate_times_zero_has_the_gradient_of_its_branches(m_step):
    found, expected = (
        fit(partial(absent, z_times=f), *counted(), strategy=EM(tol=1e-6, m_step=m_step))
        for f in (times_zero, by_branches)
    )
    assert found.converged and expected.converged
    assert found.objective == pytest.approx(expected.objective, abs=1e-5)
    torch.testing.assert_close(found.params, expected.params, atol=1e-3, rtol=0)


def test_a_gradient_of_nan_is_not_convergence():
    with pytest.warns(RuntimeWarning, match="'coefs' is infinite or NaN"):
        found = fit(partial(absent, z_times=zero_times_infinity), *counted(), strategy=EM())
    assert found.status is Status.NON_FINITE and not found.converged
    assert torch.equal(found.params["coefs"], f64([0.5, 0.0]))


def test_dispersions_shared_by_counts_of_different_size():
    """Each site has its own counts to tell apart, and both speak of one dispersion."""
    torch.manual_seed(0)
    x = torch.randn(80, dtype=torch.float64)
    few, many = (dist.NegativeBinomial(f64(3.0), logits=a + 0.3 * x).sample() for a in (-1.0, 3.0))

    def model(x, few, many):
        r, b = pyro.param("r", f64(1.0), constraint=positive), pyro.param("b", f64(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("few", dist.NegativeBinomial(r, logits=b * x - 1.0), obs=few)
            pyro.sample("many", dist.NegativeBinomial(r, logits=b * x + 3.0), obs=many)

    for fixed in ((), ("b",)):
        found = fit(model, x, few, many, strategy=EM(fixed=fixed, tol=1e-10))
        again = fit(model, x, few, many, strategy=EM(m_step=GradientMStep(), fixed=fixed, tol=1e-10))
        assert found.objective == pytest.approx(again.objective, abs=1e-7)
        assert found.params["r"].item() == pytest.approx(again.params["r"].item(), rel=1e-4)
