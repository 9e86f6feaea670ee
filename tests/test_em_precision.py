"""A Gaussian by its precision is the same Gaussian."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive_definite

from pyro_em import EM, fit

f64 = partial(torch.tensor, dtype=torch.float64)


@pytest.mark.parametrize("shared", [True, False])
def test_a_precision_is_a_covariance(shared):
    """Both triangles of the parameter must follow."""
    torch.manual_seed(1)
    x = torch.cat([torch.randn(60, 2) * 1.5 + 1, torch.randn(60, 2) - 1]).to(torch.float64)

    def model(x, argument):
        start = f64([[2.0, 0.5], [0.5, 1.0]])
        start = torch.linalg.inv(start) if argument == "precision_matrix" else start
        start = start if shared else start.repeat(2, 1, 1)
        matrix = pyro.param("matrix", start, constraint=positive_definite)
        locs = pyro.param("locs", f64([[1.0, 1.0], [-1.0, -1.0]]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.5))).long()
            width = {argument: matrix if shared else matrix[z]}
            pyro.sample("x", dist.MultivariateNormal(locs[z], **width), obs=x)

    one, other = (
        fit(model, x, argument, strategy=EM(max_steps=20, tol=0), progress=False)
        for argument in ("covariance_matrix", "precision_matrix")
    )
    assert other.history.objective.tolist() == pytest.approx(one.history.objective.tolist(), abs=1e-8)
    torch.testing.assert_close(torch.linalg.inv(other.params["matrix"]), one.params["matrix"])
