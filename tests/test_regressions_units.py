"""Regressions in the units that data come in: what they reach does not depend on them."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive

from pyro_em import EM, fit

RNG = np.random.default_rng(0)
AGE = RNG.uniform(18, 80, 300)
PEOPLE = RNG.uniform(1e5, 5e6, 300)
AGES = (AGE - 50) / 18
COUNTS = RNG.poisson(np.exp(0.5 * AGES - 0.4 * AGES**2))
WAITS = RNG.normal(size=300) + 3 * (RNG.random(300) < 1 / (1 + np.exp(-(PEOPLE - 2.5e6) / 1e6)))


def design(x, degree):
    return torch.tensor(np.vander(x, degree + 1, increasing=True))


def linear(x, y):
    b, s = pyro.param("b", torch.zeros(x.shape[1]).double()), pyro.param("s", torch.tensor(2.0), constraint=positive)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ b, s), obs=y)


def logistic(x, y):
    b = pyro.param("b", torch.zeros(x.shape[1]).double())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=(y > 1.0).to(x))


def poisson(x, y):
    b = pyro.param("b", torch.zeros(x.shape[1]).double())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson((x @ b).exp()), obs=y)


def gate(x, y):
    """The class depends on the covariate."""
    b = pyro.param("b", torch.zeros(x.shape[1]).double())
    locs = pyro.param("locs", torch.tensor([0.0, 3.0]).double())
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(logits=x @ b)).long()
        pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)


CASES = {
    "linear": (linear, PEOPLE, 1, WAITS),
    "logistic": (logistic, AGE, 3, COUNTS),
    "poisson": (poisson, AGE, 3, COUNTS),
    "gate": (gate, PEOPLE, 1, WAITS),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [None, 101])
def test_units_of_covariates_do_not_matter(name, size):
    model, x, degree, y = CASES[name]
    y = torch.tensor(y, dtype=torch.float64)
    standard = (x - x.mean()) / x.std()
    found, same = (
        fit(model, design(v, degree), y, strategy=EM(tol=1e-6, batch_size=size), progress=False) for v in (x, standard)
    )
    assert found.converged and found.objective == pytest.approx(same.objective, abs=1e-5)
    assert not {"gradient", "statistics"} & set(found.explain()["owner"])
    assert set(found.explain()["verdict"]) == set(same.explain()["verdict"])


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_least_squares_are_those_of_numpy(unit):
    x, y = design(PEOPLE * unit, 1), torch.tensor(WAITS)
    found = fit(linear, x, y, strategy=EM(), progress=False)
    best = np.linalg.lstsq(x.numpy() / [1.0, unit * 1e6], WAITS, rcond=None)[0] / [1.0, unit * 1e6]
    np.testing.assert_allclose(found.params["b"].detach().numpy(), best, rtol=1e-8)
