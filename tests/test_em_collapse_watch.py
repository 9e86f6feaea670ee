"""What is looked at where the gradient moves: concentrations, and each series along a chain in its own unit."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval
from shared.collapse import f64, is_finite

from pyro_em import EM, DegenerateError, GradientMStep, fit


def weights():
    return dist.Categorical(pyro.param("weights", f64([0.5, 0.5]), constraint=simplex))


@pytest.mark.parametrize("policy", ["raise", "restart"])
def test_a_precision_that_grows_without_limit(policy):
    """A Beta by mean and precision, which only the gradient can move."""
    torch.manual_seed(0)
    x = dist.Beta(f64(2.0), f64(2.0)).sample((60,))
    x = torch.cat([x[(x - 0.4).abs() > 0.1], f64([0.4] * 4)])

    def model(x):
        mean = pyro.param("mean", f64([0.5, 0.4]), constraint=unit_interval)
        precision = pyro.param("precision", f64([4.0, 1e4]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", weights())
            pyro.sample("x", dist.Beta(mean[z] * precision[z], (1 - mean[z]) * precision[z]), obs=x)

    strategy = EM(on_degenerate=policy, max_steps=100)
    if policy == "raise":
        with pytest.raises(DegenerateError, match="rose to") as caught:
            fit(model, x, strategy=strategy, progress=False)
        assert (caught.value.param, caught.value.element) == ("precision", (1,))
    else:
        found = fit(model, x, strategy=strategy, seed=0, progress=False)
        assert found.converged and found.params["precision"].max() < 1e4


@pytest.mark.parametrize("m_step", [None, GradientMStep()])
def test_two_series_of_different_units_along_a_chain(m_step):
    """The first frame has one factor more, the law of the first state: that must not mix up the two series."""
    torch.manual_seed(0)
    high = torch.rand(3, 8) < 0.5
    x = 1e-6 * (torch.where(high, 3.0, 0.0) + torch.randn(3, 8)).to(torch.float64)
    y = 1e3 * (torch.where(high, 0.0, 4.0) + torch.randn(3, 8)).to(torch.float64)

    def model(x, y):
        first = pyro.param("first", f64([0.5, 0.5]), constraint=simplex)
        moves = pyro.param("moves", f64([[0.6, 0.4], [0.3, 0.7]]), constraint=simplex)
        fine = pyro.param("fine", f64([1.0, 1.0]), constraint=positive)
        rough = pyro.param("rough", f64([1.0, 1.0]), constraint=positive)
        with pyro.plate("series", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(first if z is None else moves[z]))
                pyro.sample(f"x_{t}", dist.Laplace(f64([0.0, 3e-6])[z], 1e-6 * fine[z]), obs=x[:, t])
                pyro.sample(f"y_{t}", dist.Normal(f64([4e3, 0.0])[z], 1e3 * rough[z]), obs=y[:, t])

    found = fit(model, x, y, strategy=EM(m_step=m_step, max_steps=5, tol=0), progress=False)
    assert is_finite(found) and found.history.objective.is_monotonic_increasing
