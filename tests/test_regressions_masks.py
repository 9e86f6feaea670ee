"""Masks that depend on the state of a latent, against sums written by hand."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import positive

from pyro_em import EM, GradientMStep, fit

f64 = partial(torch.tensor, dtype=torch.float64)
fit = partial(fit, progress=False)
Y = f64([0.0, 1.0, 2.0, 3.0, 9.0, 0.0, 0.0, 4.0])
PROB = f64(0.05)


def by_messenger(y):
    """A state that says nothing of the datum, one of zero log-density for it."""
    rate = pyro.param("rate", f64(1.5), positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(PROB))
        with poutine.mask(mask=z == 0):
            pyro.sample("y", dist.Poisson(rate), obs=y)


def by_distribution(y):
    rate = pyro.param("rate", f64(1.5), positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(PROB))
        pyro.sample("y", dist.Poisson(rate).mask(z == 0), obs=y)


def by_hand(rate):
    """The density under a mask is one, also that part of it that no parameter touches."""
    seen = (1 - PROB).log() + dist.Poisson(rate).log_prob(Y)
    return torch.logaddexp(seen, PROB.log().expand(len(Y))).sum()


@pytest.mark.parametrize("model", [by_messenger, by_distribution])
def test_a_mask_over_states(model):
    start = fit(model, Y, strategy=EM(max_steps=0))
    assert start.log_evidence == pytest.approx(by_hand(f64(1.5)).item(), abs=1e-10)
    found = fit(model, Y, strategy=EM(tol=1e-8))
    assert found.converged
    assert found.log_evidence == pytest.approx(by_hand(found.params["rate"]).item(), abs=1e-10)
    other = fit(model, Y, strategy=EM(tol=1e-8, m_step=GradientMStep()))
    assert found.objective == pytest.approx(other.objective, abs=1e-6)
    owners = found.explain().set_index("parameter")
    assert owners.owner["rate"] == "gradient" and "mask depends on the state of 'z'" in owners.reason["rate"]


@pytest.mark.parametrize("hidden", [Y > 3, (Y > 3).double()])
def test_a_mask_that_pyro_expands_over_states_leaves_closed_forms(hidden):
    def model(y):
        rates = pyro.param("rates", f64([1.0, 3.0]), positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(PROB))
            pyro.sample("y", dist.Poisson(rates[z.long()]).mask(hidden == 0), obs=y)

    assert fit(model, Y, strategy=EM(max_steps=2)).explain().owner.tolist() == ["closed form"]
