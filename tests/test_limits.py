"""Families whose likelihood has no maximum because another family is its limit: the fit stops, and is right."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import half_open_interval, interval, positive, unit_interval

from pyro_em import EM, StartError, Status, fit

f64 = partial(torch.tensor, dtype=torch.float64)


def test_counts_as_even_as_a_poisson_are_one():
    """The number of failures has no maximum: where the density has come to its limit, the fit stops, and is right."""
    torch.manual_seed(0)
    y = torch.poisson(torch.full((500,), 3.0, dtype=torch.float64)).clamp(max=5)

    def model(y):
        count = pyro.param("count", f64(3.0), constraint=positive)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.NegativeBinomial(count, pyro.param("p", f64(0.5), constraint=unit_interval)), obs=y)

    found = fit(model, y, strategy=EM(), progress=False)
    assert found.converged and found.explain().owner.tolist() == ["newton", "newton"]
    assert found.log_evidence == pytest.approx(float(dist.Poisson(y.mean()).log_prob(y).sum()), abs=1e-4)


def test_tails_as_thin_as_a_normal_are_one():
    torch.manual_seed(0)
    y = (torch.rand(300, dtype=torch.float64) - 0.5) * 4

    def model(y):
        df, width = (pyro.param(n, f64(v), constraint=positive) for n, v in (("df", 5.0), ("width", 1.0)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.StudentT(df, pyro.param("loc", f64(0.3)), width), obs=y)

    found = fit(model, y, strategy=EM(max_steps=3000, accelerate="squarem"), progress=False)
    best = dist.Normal(y.mean(), y.std(correction=0)).log_prob(y).sum()
    assert found.log_evidence == pytest.approx(float(best), abs=1e-2)


@pytest.mark.parametrize("fn", [dist.Beta, dist.Gamma])
def test_data_on_the_edge_of_the_support_are_no_maximum(fn):
    """There the density is zero, or without bound as a concentration falls below one."""
    x = f64([0.0, 0.5, 0.2, 0.3])

    def model(x, start):
        one, other = (pyro.param(n, f64(start), constraint=positive) for n in ("one", "other"))
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn(one, other), obs=x)

    with pytest.raises(StartError, match="is inf: a density is unbounded"):
        fit(model, x, 0.5, strategy=EM(), progress=False)
    with pytest.raises(StartError, match="is -inf"):
        fit(model, x, 2.0, strategy=EM(), progress=False)
    found = fit(model, x, 1.0, strategy=EM(), progress=False)  # where the edge is like any other datum
    assert found.status is Status.NON_FINITE and found.objective < 1e3


@pytest.mark.parametrize("bounds", [half_open_interval(0.0, 1.0), interval(torch.zeros(3), torch.ones(3))])
def test_probabilities_under_other_names_of_their_interval(bounds):
    x = f64([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])

    def model(x):
        probs = pyro.param("probs", f64([0.3, 0.4, 0.5]), constraint=bounds)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(probs).to_event(1), obs=x)

    found = fit(model, x, strategy=EM(), progress=False)
    assert set(found.explain()["owner"]) == {"closed form"}
    torch.testing.assert_close(found.params["probs"], x.mean(0), rtol=1e-9, atol=0)
