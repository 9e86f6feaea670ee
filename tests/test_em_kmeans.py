"""Starts from k-means++ find clusters that the model's own initial values do not, and ask for what they need."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import lower_cholesky, positive, simplex, unit_interval
from shared.starts import TRUE, clusters, f64, gated, mixture, network, run

from models import gaussian_mixture
from pyro_em import DegenerateError, KMeans, ModelError


@pytest.mark.parametrize("accelerate", [None, "squarem"])
def test_kmeans_finds_clusters_from_a_bad_start(accelerate):
    x = clusters()
    same = {"locs": torch.full((4,), 3.0)}  # components in one place never part
    assert run(mixture, x, init=same).params["locs"].diff().abs().max() < 1e-6
    for seed in range(3):
        result = run(mixture, x, init=same, start=KMeans("x"), seed=seed, restarts=3, accelerate=accelerate)
        torch.testing.assert_close(result.params["locs"].sort().values, TRUE, atol=0.4, rtol=0)


def test_kmeans_starts_at_the_means_of_the_clusters():
    """Some of a few seeds have one in each cluster; from there nothing is left to move."""
    x = clusters()
    starts = [run(mixture, x, start=KMeans("x"), seed=s, max_steps=0).params["locs"].sort().values for s in range(6)]
    means = x.reshape(4, -1).mean(1)
    assert min((s - means).abs().max().item() for s in starts) < 1e-6


@pytest.mark.parametrize("kind", ["normal", "multivariate"])
def test_kmeans_on_vectors(kind):
    x = clusters(dims=2) * f64([1.0, 100.0])  # neither dimension drowns the other

    def model(x):
        weights = pyro.param("weights", torch.full((4,), 0.25), constraint=simplex)
        locs = pyro.param("locs", 1000 + torch.arange(8.0).reshape(4, 2))
        if kind == "normal":
            scale = pyro.param("scale", f64([10.0, 10.0]), constraint=positive)
        else:
            scale = pyro.param("scale", 10 * torch.eye(2), constraint=lower_cholesky)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            if kind == "normal":
                pyro.sample("x", dist.Normal(locs[z], scale).to_event(1), obs=x)
            else:
                pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=scale), obs=x)

    result = run(model, x, start=KMeans("x"), restarts=3)
    found = result.params["locs"]
    torch.testing.assert_close(found[found[:, 0].argsort()][:, 0], TRUE, atol=0.4, rtol=0)


def test_kmeans_reaches_the_gold_maximum():
    result = run(gaussian_mixture.model, *gaussian_mixture.load(), start=KMeans("x"), tol=1e-6)
    assert result.objective == pytest.approx(-1130.2639602, abs=1e-4)


def test_kmeans_with_missing_rows():
    def model(x):
        with poutine.mask(mask=~torch.isnan(x)):
            mixture(x)

    x = clusters()
    x[::10] = torch.nan
    result = run(model, x, start=KMeans("x"), restarts=4)
    torch.testing.assert_close(result.params["locs"].sort().values, TRUE, atol=0.4, rtol=0)


def test_kmeans_on_a_site_of_an_opaque_model():
    x = clusters()[30:90]
    result = run(gated(network()), x, start=KMeans("x"), restarts=2, max_steps=5)
    torch.testing.assert_close(result.params["locs"].sort().values, TRUE[1:3], atol=0.4, rtol=0)


@pytest.mark.parametrize("site", ["y", "z", "weights", ""])
@pytest.mark.parametrize("make", [lambda: mixture, lambda: gated(network())], ids=["compiled", "traced"])
def test_kmeans_needs_an_observed_site(site, make):
    with pytest.raises(ModelError, match=f"{site!r}"):
        run(make(), clusters(), start=KMeans(site))


def test_kmeans_needs_one_latent():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.5))
            b = pyro.sample("b", dist.Bernoulli(pyro.param("p", f64(0.4), constraint=unit_interval)))
            pyro.sample("x", dist.Normal(a + 2.0 * b, 1.0), obs=x)

    with pytest.raises(ModelError, match="one latent; 'x'"):
        run(model, clusters(), start=KMeans("x"))


def test_kmeans_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ModelError, match="pip install scikit-learn"):
        run(mixture, clusters(), start=KMeans("x"))


def test_kmeans_with_fewer_data_than_states():
    """k-means++ has only as many seeds as there are data. Here each datum gets one, and nothing is left to scatter."""
    with pytest.raises(DegenerateError, match="'scale'"):
        run(mixture, f64([0.0, 5.0]), start=KMeans("x"), max_steps=30)
