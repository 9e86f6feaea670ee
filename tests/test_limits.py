"""Families whose likelihood has no maximum because another family is its limit: the fit stops, and is right."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, unit_interval

from pyro_em import EM, fit

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
