"""What can be asked of a fit: posteriors on new data, prediction, the fitted guide, ArviZ, and values in place."""

from functools import partial
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from torch import Tensor, nn
from torch.distributions.constraints import positive, simplex

from pyro_em import EM, SVI, FitResult, ModelError, Status, fit

X = torch.tensor([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4, 2.6, 3.1], dtype=torch.float64)
ADAM = partial(torch.optim.Adam, lr=0.05)


def mixture(x: Tensor | None, size: int = 10) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.5]))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 0.8), obs=x)


def chain(x: Tensor) -> None:
    stay = pyro.param("stay", torch.tensor([0.8, 0.7]), constraint=torch.distributions.constraints.unit_interval)
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        p = stay if t == 0 else torch.where(torch.as_tensor(z) == 0, stay[0], 1 - stay[1])
        z = pyro.sample(f"z_{t}", dist.Bernoulli(1 - (p[0] if t == 0 else p)))
        pyro.sample(f"x_{t}", dist.Normal(3 * z - 1.0, 1.0), obs=x[t])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> dist.Normal:
        loc, log_scale = self.layer(x[:, None]).unbind(-1)
        return dist.Normal(loc, log_scale.exp())


def factor_analysis(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * c, 0.5), obs=x)


def amortised() -> FitResult:
    encoder = Encoder()

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("c", encoder(x))

    return fit(factor_analysis, X, strategy=SVI(guide, optim=ADAM, max_steps=100), seed=0, progress=False)


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    torch.set_default_dtype(torch.float64)
    return fit(mixture, X, strategy=EM(tol=1e-6), progress=False)


def responsibilities(x: Tensor, params: dict[str, Tensor]) -> Tensor:
    joint = params["weights"] * torch.exp(-0.5 * ((x[:, None] - params["locs"]) / 0.8) ** 2)
    return joint / joint.sum(-1, keepdim=True)


def test_posterior_on_training_and_new_data(fitted: FitResult) -> None:
    new = torch.tensor([-0.4, 0.1, 5.0])
    for x, post in ((X, fitted.posterior()), (new, fitted.posterior(new))):
        expected = responsibilities(x, fitted.params)
        torch.testing.assert_close(post["z"].probs, expected)
        torch.testing.assert_close(post.map()["z"], expected.argmax(-1))
        assert post.log_likelihood.shape == x.shape
        assert post.log_likelihood.sum().item() == pytest.approx(post.log_evidence, abs=1e-10)


def test_posterior_on_a_longer_sequence() -> None:
    result = fit(chain, X[:4], strategy=EM(max_steps=3), progress=False)
    post = result.posterior(X)
    assert set(post.map()) == {f"z_{t}" for t in range(len(X))}
    assert post.joint("z_3", "z_4").probs.shape == (2, 2)
    assert post.sample(5)["z_9"].shape == (5,)


def test_unknown_site_is_named(fitted: FitResult) -> None:
    with pytest.raises(KeyError, match="No enumerated latent 'y'; the model's latents are \\['z'\\]"):
        fitted.posterior()["y"]


def test_amortised_posterior_is_the_guides_own_distribution() -> None:
    result = amortised()
    new = torch.tensor([0.5, -1.0])
    post = result.posterior(new)
    assert isinstance(post["c"], dist.Normal)
    with result.use():
        weight, bias = pyro.param("encoder$$$layer.weight"), pyro.param("encoder$$$layer.bias")
        torch.testing.assert_close(post["c"].loc, weight[0] * new + bias[0])
    draws = post.sample(400)["c"]
    torch.testing.assert_close(draws.mean(0), post["c"].loc, atol=0.15, rtol=0.0)


def test_guided_posterior_has_a_joint_maximum() -> None:
    result = amortised()
    post = result.posterior()
    torch.testing.assert_close(post.map()["c"], post["c"].loc)
    with pytest.raises(ValueError, match=r"\['c'\] cannot be summed out.*lower bound"):
        post.log_likelihood  # noqa: B018


def test_finite_rest_is_summed_out_given_the_guide() -> None:
    """A guide for the first of two finite latents: q(a) from the guide, p(b | a, x) exact, evidence exact."""

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            b = pyro.sample("b", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
            pyro.sample("x", dist.Normal(shift * a + 2.0 * b, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.1)) * x))

    result = fit(model, X, strategy=SVI(guide, optim=ADAM, max_steps=20), seed=0, progress=False)
    post, exact = result.posterior(), fit(model, X, strategy=EM(max_steps=0), init=result, progress=False)
    assert post.log_evidence == pytest.approx(exact.log_evidence, abs=1e-10)
    assert result.log_evidence == pytest.approx(exact.log_evidence, abs=1e-10)
    torch.testing.assert_close(post.log_likelihood, exact.posterior().log_likelihood)
    torch.testing.assert_close(post["a"].logits, result.params["slope"] * X)
    assert post["b"].probs.shape == (10, 3)
    torch.testing.assert_close(post.joint("b").probs, post["b"].probs, atol=0.2, rtol=0.0)
    best = post.map()
    assert torch.equal(best["a"], (X > 0).to(best["a"].dtype))
    given = (
        torch.tensor([0.5, 0.3, 0.2]).log()
        - ((X - result.params["shift"] * best["a"])[:, None] - 2.0 * torch.arange(3)) ** 2 / 1.28
    )
    assert torch.equal(best["b"], given.argmax(-1))


def test_guide_makes_the_bound_tight(fitted: FitResult) -> None:
    with fitted.use():
        for seed in range(5):
            pyro.set_rng_seed(seed)
            assert -Trace_ELBO().loss(mixture, fitted.guide, X) == pytest.approx(fitted.log_evidence, abs=1e-9)


def test_predictive_of_pyro_takes_the_fitted_guide(fitted: FitResult) -> None:
    with fitted.use():
        draws = Predictive(mixture, guide=fitted.guide, num_samples=400)(X)
    assert draws["z"].shape == (400, 10)
    torch.testing.assert_close(
        draws["z"].to(torch.float64).mean(0), responsibilities(X, fitted.params)[:, 1], atol=0.12, rtol=0.0
    )


def test_amortised_guide_runs_outside_the_fit() -> None:
    result = amortised()
    trace = pyro.poutine.trace(result.guide).get_trace(X)
    torch.testing.assert_close(trace.nodes["c"]["fn"].loc, result.posterior()["c"].loc)
    assert not list(pyro.get_param_store().keys())


def test_predict_replicates_the_data(fitted: FitResult) -> None:
    draws = fitted.predict(num_samples=500, seed=0)
    assert draws["x"].shape == (500, 10)
    expected = responsibilities(X, fitted.params) @ fitted.params["locs"]
    torch.testing.assert_close(draws["x"].mean(0), expected, atol=0.25, rtol=0.0)
    again = fitted.predict(num_samples=500, seed=0)
    assert torch.equal(draws["x"], again["x"])


def test_predict_without_observations_simulates_the_model(fitted: FitResult) -> None:
    draws = fitted.predict(None, num_samples=800, seed=0, size=3)
    assert draws["x"].shape == (800, 3)
    mean = (fitted.params["weights"] * fitted.params["locs"]).sum().item()
    assert draws["x"].mean().item() == pytest.approx(mean, abs=0.15)


def test_use_puts_values_in_place_and_takes_them_back(fitted: FitResult) -> None:
    pyro.param("locs", torch.tensor([7.0, 8.0]))
    with fitted.use():
        torch.testing.assert_close(pyro.param("locs"), fitted.params["locs"])
        pyro.param("locs").unconstrained().data.fill_(0.0)  # what the body does to them is forgotten
    assert pyro.param("locs").tolist() == [7.0, 8.0]
    with fitted.use():
        torch.testing.assert_close(pyro.param("locs"), fitted.params["locs"])


def test_arviz_on_exact_latents(fitted: FitResult) -> None:
    data = fitted.to_arviz(num_samples=30, seed=0)
    posterior, pointwise = data["posterior"], data["log_likelihood"]["x"]
    assert posterior["z"].dims == ("chain", "draw", "data")
    assert pointwise.dims == ("chain", "draw", "data")
    np.testing.assert_allclose(pointwise.sum("data"), fitted.log_evidence, rtol=1e-9)
    np.testing.assert_allclose(posterior["locs"][0, 0], fitted.params["locs"])
    np.testing.assert_allclose(data["observed_data"]["x"], X)
    assert data["sample_stats"]["objective"].sizes["step"] == len(fitted.history)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # r_hat of a constant
def test_arviz_summary_and_loo(fitted: FitResult) -> None:
    data = fitted.to_arviz(seed=0)
    assert "z[0]" in az.summary(data).index
    loo = az.loo(data)
    assert float(getattr(loo, "elpd", None) or loo.elpd_loo) == pytest.approx(fitted.log_evidence, abs=1e-5)


def test_arviz_names_point_estimates_and_guide_draws() -> None:
    data = amortised().to_arviz(num_samples=5, num_chains=2)
    assert data["posterior"]["c"].dims == ("chain", "draw", "data")
    assert "encoder$$$layer.weight" in data["posterior"]


def test_arviz_shows_hidden_data_as_missing() -> None:
    def model(x: Tensor, seen: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x, obs_mask=seen)

    seen = torch.arange(10) % 3 > 0
    data = fit(model, X, seen, strategy=EM(), progress=False).to_arviz(num_samples=2)
    np.testing.assert_allclose(data["observed_data"]["x"], torch.where(seen, X, torch.nan))
    assert "x" in data["log_likelihood"]


def test_shared_latent_has_no_pointwise_likelihood() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(1.0))
        sign = pyro.sample("sign", dist.Bernoulli(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc * sign, 1.0), obs=x)

    result = fit(model, X, strategy=EM(max_steps=2), progress=False)
    with pytest.raises(ValueError, match=r"\['sign'\] are shared by all data"):
        result.posterior().log_likelihood  # noqa: B018
    assert "log_likelihood" not in list(result.to_arviz(num_samples=2))


def test_warm_start_across_strategies(fitted: FitResult) -> None:
    svi = fit(mixture, X, strategy=SVI(optim=ADAM, max_steps=1), init=fitted, progress=False)
    assert svi.history["objective"][0] == pytest.approx(fitted.log_evidence, abs=1e-9)
    back = fit(mixture, X, strategy=EM(max_steps=0), init=svi, progress=False)
    assert back.log_evidence == pytest.approx(svi.log_evidence, abs=1e-9)


def test_result_reads_well(fitted: FitResult) -> None:
    assert repr(fitted).startswith("FitResult(log_evidence=-")
    assert "status=CONVERGED" in repr(fitted)
    assert str(Status.MAX_STEPS).startswith("The cap on steps or epochs was reached")
    with pytest.raises(AttributeError):
        fitted.objective = 0.0  # type: ignore[misc]


def test_refusal_of_new_data_is_a_sentence(fitted: FitResult) -> None:
    with pytest.raises(ModelError, match="NaN or an infinite value that no mask hides"):
        fitted.posterior(torch.tensor([0.0, float("nan")]))
