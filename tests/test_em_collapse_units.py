"""Floors and collapses where data are in several units, or in none that an axis has."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import lower_cholesky, positive, positive_definite, simplex
from shared.collapse import f64, run

from pyro_em import EM, DegenerateError, fit


def two_units(order):
    """One scale of measurements whose components lie one, and a hundred thousand, apart."""
    torch.manual_seed(0)
    side = (torch.rand(400) < 0.5).long()
    noise = 0.5 * torch.randn(2, 400, dtype=torch.float64)
    data = {"near": noise[0] + f64([-1.0, 1.0])[side], "far": noise[1] + f64([-1e5, 1e5])[side]}

    def model(data):
        starts = {"near": f64([-1.0, 1.0]), "far": f64([-1e5, 1e5])}
        locs = {name: pyro.param(name, starts[name]) for name in order}
        scale = pyro.param("scale", f64(1.0), constraint=positive)
        with pyro.plate("data", 400):
            z = pyro.sample("z", dist.Bernoulli(f64(0.5))).long()
            for name in order:
                pyro.sample(f"x_{name}", dist.Normal(locs[name][z], scale), obs=data[name])

    return fit(model, data, strategy=EM(on_degenerate="floor"), progress=False)


def test_a_floor_is_a_share_of_the_least_variance_in_whatever_order():
    one, other = two_units(["near", "far"]), two_units(["far", "near"])
    assert one.params["scale"].item() == pytest.approx(0.5, abs=0.05)
    assert one.objective == pytest.approx(other.objective, abs=1e-5)


@pytest.mark.parametrize("size", [None, 60])
def test_a_floor_keeps_the_covariance_beside_covariates(size):
    """The second column is the first, so that no factor of the covariance comes out."""
    torch.manual_seed(0)
    x, noise = torch.randn(2, 150, dtype=torch.float64)
    y = (1 + 2 * x + noise).unsqueeze(-1).repeat(1, 2)

    def model(x, y):
        a, b = pyro.param("a", f64([0.0, 0.0])), pyro.param("b", f64([0.0, 0.0]))
        tril = pyro.param("tril", torch.eye(2, dtype=torch.float64), constraint=lower_cholesky)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.MultivariateNormal(a + x.unsqueeze(-1) * b, scale_tril=tril), obs=y)

    found = fit(model, x, y, strategy=EM(on_degenerate="floor", batch_size=size), progress=False)
    tril = found.params["tril"].detach()
    residual = (noise - noise.mean() - (noise @ (x - x.mean()) / (x - x.mean()).square().sum()) * (x - x.mean())).var(
        correction=0
    )
    torch.testing.assert_close(tril @ tril.T, residual * torch.ones(2, 2).double(), rtol=1e-4, atol=0)
    assert found.history.objective.is_monotonic_increasing


def singular(y):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", torch.stack([torch.zeros(4), 2 * torch.ones(4)]).double())
    covs = pyro.param("covs", torch.eye(4).double().repeat(2, 1, 1), constraint=positive_definite)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.MultivariateNormal(locs[z], covs[z]), obs=y)


def test_drop_says_where_no_component_would_be_left():
    torch.manual_seed(0)
    y = torch.randn(60, 4, dtype=torch.float64) + 3 * (torch.rand(60, 1) < 0.5)
    y[:, 3] = y[:, 0] + y[:, 1]
    with pytest.raises(DegenerateError, match="'covs'"):
        run(singular, y, on_degenerate="drop")


def test_restarts_on_fewer_data_than_dimensions_end_in_a_collapse():
    torch.manual_seed(0)
    with pytest.raises(DegenerateError, match="'covs'"):
        run(singular, torch.randn(3, 4, dtype=torch.float64), on_degenerate="restart")
