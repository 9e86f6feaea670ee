"""Standard errors: against closed forms."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.information import COIN, coin, draws, fitted, gaussian
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import positive, simplex, unit_interval

from pyro_em import EM


def test_normal() -> None:
    x = 3.0 + 2.0 * draws(50)
    result = fitted(gaussian, x)
    scale = x.std(correction=0)
    errors = result.stderr()
    torch.testing.assert_close(errors["loc"], scale / 50**0.5)
    torch.testing.assert_close(errors["scale"], scale / 100**0.5)
    vcov = result.vcov()
    assert list(vcov.index) == list(vcov.columns) == ["loc", "scale"]
    assert vcov.loc["loc", "scale"] == pytest.approx(0.0, abs=1e-9)


def test_bernoulli_and_its_interval_on_the_log_odds() -> None:
    result = fitted(coin, COIN)
    p, n = 13 / 40, 40
    assert result.stderr()["p"].item() == pytest.approx((p * (1 - p) / n) ** 0.5, rel=1e-9)
    half = 1.6448536269514722 / (n * p * (1 - p)) ** 0.5
    expected = [1 / (1 + np.exp(-(np.log(p / (1 - p)) + sign * half))) for sign in (-1, 1)]
    np.testing.assert_allclose(result.confint(0.9).loc["p"], expected, rtol=1e-9)


def test_poisson_and_its_interval_on_the_logarithm() -> None:
    def counts(x: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0, 2.0, 6.0])
    result = fitted(counts, x)
    rate = x.mean().item()
    assert result.stderr()["rate"].item() == pytest.approx((rate / 7) ** 0.5, rel=1e-9)
    half = 1.959963984540054 / (7 * rate) ** 0.5
    np.testing.assert_allclose(result.confint().loc["rate"], [rate * np.exp(-half), rate * np.exp(half)], rtol=1e-9)


def test_simplex_has_the_covariance_of_a_multinomial() -> None:
    def die(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(4) / 4, constraint=simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(weights), obs=x)

    result = fitted(die, torch.tensor([0] * 7 + [1] * 4 + [2] * 20 + [3] * 9))
    p = np.array([7, 4, 20, 9]) / 40
    np.testing.assert_allclose(result.vcov(), (np.diag(p) - np.outer(p, p)) / 40, atol=1e-12)
    assert list(result.vcov().index) == [f"weights[{k}]" for k in range(4)]
    bounds, half = result.confint(), 1.959963984540054 / np.sqrt(40 * p * (1 - p))
    np.testing.assert_allclose(bounds["lower"], 1 / (1 + np.exp(-(np.log(p / (1 - p)) - half))), rtol=1e-8)
    assert ((bounds["lower"] > 0) & (bounds["upper"] < 1)).all()


@pytest.mark.parametrize("kind", ["covariance_matrix", "scale_tril"])
def test_covariance_of_a_normal(kind: str) -> None:
    """n cov(S_ij, S_kl) = S_ik S_jl + S_il S_jk, whichever matrix is the parameter."""

    def model(x: Tensor) -> None:
        constraint = constraints.lower_cholesky if kind == "scale_tril" else constraints.positive_definite
        matrix = pyro.param("matrix", torch.eye(2), constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), **{kind: matrix}), obs=x)

    x = draws(80, 2) @ torch.tensor([[1.0, 0.4], [0.0, 2.0]])
    result = fitted(model, x)
    s = (x.mT @ x / 80).numpy()
    expected = np.array(
        [
            [(s[i, k] * s[j, m] + s[i, m] * s[j, k]) / 80 for k in range(2) for m in range(2)]
            for i in range(2)
            for j in range(2)
        ]
    )
    found = result.vcov().to_numpy()
    if kind == "scale_tril":
        lower = result.params["matrix"]
        jacobian = torch.autograd.functional.jacobian(lambda t: t @ t.mT, lower).reshape(4, 4).numpy()
        assert found[1] == pytest.approx(0.0, abs=1e-12)  # what stands above the diagonal is no parameter
        found = jacobian @ found @ jacobian.T
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_prior_of_a_point_estimate_counts() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(1.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 2.0), obs=x)

    x = draws(10)
    assert fitted(model, x).stderr()["loc"].item() == pytest.approx((10 / 4 + 1 / 0.25) ** -0.5, rel=1e-9)
    free = fitted(model, x, strategy=EM(tol=1e-10, priors=False))
    assert free.stderr()["loc"].item() == pytest.approx((10 / 4) ** -0.5, rel=1e-9)


def test_linkage_of_genes() -> None:
    """Rao's 197 animals, with the curvature of the log-likelihood written by hand: 377.5."""
    cell = torch.tensor([0, 0, 1, 2, 3])

    def model(x: Tensor) -> None:
        t = pyro.param("t", torch.tensor(0.5), constraint=unit_interval)
        with pyro.plate("animals", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.stack([torch.tensor(2.0), t, 1 - t, 1 - t, t]) / 4))
            pyro.sample("x", dist.Categorical(torch.eye(4)[cell[z]]), obs=x)

    x = torch.repeat_interleave(torch.arange(4), torch.tensor([125, 18, 20, 34]))
    result = fitted(model, x)
    t = result.params["t"].item()
    assert t == pytest.approx(0.626821498, abs=1e-6)
    assert result.stderr()["t"].item() ** -2 == pytest.approx(377.5, abs=0.05)
    exact = 125 / (2 + t) ** 2 + 38 / (1 - t) ** 2 + 34 / t**2
    assert result.stderr()["t"].item() ** -2 == pytest.approx(exact, rel=1e-6)


def test_clusters_a_thousand_nats_apart_have_the_errors_of_known_labels() -> None:
    x = torch.cat([draws(40), 100.0 + draws(60, seed=1)])

    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=unit_interval)
        locs = pyro.param("locs", torch.tensor([-1.0, 99.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=x)

    errors = fitted(model, x).stderr()
    torch.testing.assert_close(errors["locs"], torch.tensor([1 / 40, 1 / 60]).sqrt())
    assert errors["p"].item() == pytest.approx((0.4 * 0.6 / 100) ** 0.5, rel=1e-9)
