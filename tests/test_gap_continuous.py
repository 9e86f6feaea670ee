"""The gap of a guide over continuous latents: against conjugate posteriors and their best approximations."""

import re
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoMultivariateNormal
from shared.gap import X, at_start, factor_analysis, linear_guide
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import positive
from untouched import untouched

from pyro_em import SVI, fit

ADAM = partial(torch.optim.Adam, lr=0.02)


def test_a_family_that_holds_the_posterior_has_only_an_amortization_gap() -> None:
    result = at_start(factor_analysis, linear_guide, X)
    quadrature = result.evidence_by_quadrature()
    expected = dist.Normal(0.0, (1.3**2 + 0.25) ** 0.5).log_prob(X)
    torch.testing.assert_close(quadrature.log_likelihood, expected)
    assert quadrature.log_evidence == pytest.approx(expected.sum().item(), abs=1e-9)
    assert quadrature.error < 1e-6
    gap = result.gap(log_evidence=quadrature.log_likelihood, num_samples=400, steps=400, seed=0)
    posterior = dist.Normal(X * 1.3 / (1.3**2 + 0.25), (0.25 / (1.3**2 + 0.25)) ** 0.5)
    kl = torch.distributions.kl_divergence(dist.Normal(0.4 * X, 0.3), posterior).sum().item()
    assert gap.total == pytest.approx(kl, abs=4 * gap.elbo_stderr)
    assert 0 < gap.elbo_stderr < 0.2 * kl
    assert gap.approximation == pytest.approx(0.0, abs=1e-3)  # draws at the optimum have no noise
    assert gap.total == pytest.approx(gap.approximation + gap.amortization, abs=1e-12)


def test_best_mean_field_of_a_correlated_posterior() -> None:
    """KL = (sum_i log L_ii - log det L) / 2 per datum, for a posterior of precision L (Bishop 2006, section 10.1.2)."""
    loadings = torch.tensor([1.0, 0.8])

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=positive)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(c @ loadings, scale), obs=x)

    def guide(x: Tensor) -> None:
        gain = pyro.param("gain", torch.tensor([0.6, 0.2]))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Normal(x[:, None] * gain, 0.5).to_event(1))

    result = at_start(model, guide, X)
    precision = torch.eye(2) + loadings[:, None] * loadings / 0.25
    best = 0.5 * len(X) * (precision.diagonal().log().sum() - precision.logdet()).item()
    quadrature = result.evidence_by_quadrature()
    expected = dist.Normal(0.0, (loadings.square().sum() + 0.25).sqrt()).log_prob(X).sum().item()
    assert quadrature.log_evidence == pytest.approx(expected, abs=1e-8)
    gap = result.gap(log_evidence=quadrature.log_evidence, num_samples=600, steps=200, seed=0)
    assert gap.approximation == pytest.approx(best, rel=0.1)


def test_a_number_given_as_evidence_keeps_its_digits_in_single_precision() -> None:
    torch.set_default_dtype(torch.float32)
    gap = at_start(factor_analysis, linear_guide, X.float()).gap(log_evidence=-9656.4056762, num_samples=2, steps=0)
    assert gap.log_evidence == -9656.4056762


def test_without_an_evidence_only_amortization_is_known() -> None:
    gap = at_start(factor_analysis, linear_guide, X).gap(num_samples=50, steps=50, seed=0)
    assert gap.log_evidence is gap.total is gap.approximation is None
    assert gap.amortization > 0
    assert "evidence_by_quadrature" in gap.reason


def test_an_automatic_guide_at_its_optimum_has_no_amortization_gap() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    result = fit(model, X.abs(), strategy=SVI(optim=ADAM, max_steps=300, patience=None), seed=0, progress=False)
    gap = result.gap(num_samples=200, steps=300, seed=0)
    assert gap.amortization == pytest.approx(0.0, abs=0.02)


def depends(x: Tensor) -> None:
    gain = pyro.param("gain", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Normal(gain * x + shift, 0.3))


def point(x: Tensor) -> None:
    gain = pyro.param("gain", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Delta(gain * x))


def uniform(x: Tensor) -> None:
    gain = pyro.param("gain", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Uniform(gain * x - 1, gain * x + 1))


@pytest.mark.parametrize(
    ("guide", "reason"),
    [
        (depends, "arguments of site 'c' of the guide depend on draws"),
        (point, "site 'c' of the guide is a point mass"),
        (uniform, "site 'c' of the guide is a Uniform, whose support moves with its arguments"),
    ],
)
def test_why_there_is_no_split(guide: Any, reason: str) -> None:
    def model(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.3))
        with pyro.plate("data", len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * c + shift, 0.5), obs=x)

    gap = at_start(model, guide, X).gap(log_evidence=0.0, num_samples=10, steps=1)
    assert gap.amortization is gap.approximation is None
    assert gap.total == (None if guide is point else -gap.elbo)
    assert re.search(reason, gap.reason)


@pytest.mark.parametrize("evidence", [None, -10.0])
@pytest.mark.parametrize("automatic", [AutoDelta, AutoLaplaceApproximation])
def test_no_kl_from_a_point_mass(automatic: Any, evidence: float | None) -> None:
    gap = at_start(factor_analysis, automatic(factor_analysis), X).gap(log_evidence=evidence, num_samples=5, steps=2)
    assert gap.total is gap.approximation is gap.amortization is None
    assert gap.log_evidence == evidence
    assert "is a point mass, and there is no KL from a point mass to a density" in gap.reason


def test_a_point_mass_on_a_finite_latent_has_a_kl() -> None:
    """It is -log p(z | x)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(1.0)) * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(pyro.param("shift", torch.tensor(0.0)) + (x > 0.5).double()))

    gap = at_start(model, guide, X).gap(num_samples=3, steps=2)
    z, odds = X > 0.5, torch.tensor(0.4).logit() + X - 0.5
    expected = -torch.where(z, odds, -odds).sigmoid().log().sum().item()
    assert gap.total == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize("fitted_for", [0, 300])
def test_a_full_covariance_of_many_latents(fitted_for: int, steps: int) -> None:
    """The family holds the posterior, so that the approximation gap is zero; steps of fixed length diverge."""
    x = 1.4 * torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strategy = SVI(AutoMultivariateNormal(factor_analysis), optim=ADAM, max_steps=fitted_for, patience=None)
    result = fit(factor_analysis, x, strategy=strategy, seed=0, progress=False)
    evidence = dist.Normal(0.0, (result.params["slope"] ** 2 + 0.25) ** 0.5).log_prob(x)
    gap = result.gap(log_evidence=evidence, steps=steps, seed=0)
    assert gap.total > 0
    assert gap.amortization >= -2 * gap.amortization_stderr
    assert gap.approximation >= -2 * gap.elbo_stderr
    if steps == 1000:
        assert gap.approximation == pytest.approx(0.0, abs=0.1)


def test_an_evidence_that_cannot_be_leaves_no_split() -> None:
    gap = at_start(factor_analysis, linear_guide, X).gap(log_evidence=-50.0, num_samples=50, steps=100, seed=0)
    assert gap.amortization is gap.approximation is None
    assert "comes out above the log evidence by more than its Monte Carlo error" in gap.reason


def falls(*_: Any) -> Tensor:
    """A bound that is lower at every look."""
    falls.bound -= 1.0  # type: ignore[attr-defined]
    return torch.tensor(falls.bound, requires_grad=True)  # type: ignore[attr-defined]


def test_a_climb_that_never_rises_stays_and_has_no_split(monkeypatch: pytest.MonkeyPatch) -> None:
    falls.bound = 0.0  # type: ignore[attr-defined]
    monkeypatch.setattr("pyro_em.diagnostics.climb.log_ratio", falls)
    gap = at_start(factor_analysis, linear_guide, X).gap(num_samples=5, steps=20, seed=0)
    assert gap.amortization is None
    assert "end lower than it, however short the steps" in gap.reason


def test_drawn_classes_beside_continuous_latents_have_no_split() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            c = pyro.sample("c", dist.Normal(pyro.param("loc", torch.tensor(1.0)) * z, 1.0))
            pyro.sample("x", dist.Normal(c, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("odds", torch.tensor(0.1)) * x))
            pyro.sample("c", dist.Normal(x, 0.5))

    gap = at_start(model, guide, X).gap(num_samples=10, seed=0)
    assert "site 'z' of the guide is drawn without reparameterisation" in gap.reason


def test_gap_leaves_no_trace_and_repeats_by_seed() -> None:
    result = at_start(factor_analysis, linear_guide, X)
    with untouched():
        first = result.gap(num_samples=5, steps=3, seed=1)
    assert first == result.gap(num_samples=5, steps=3, seed=1)
    assert first.elbo != result.gap(num_samples=5, steps=3, seed=2).elbo


def test_one_draw_has_no_standard_error() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        at_start(factor_analysis, linear_guide, X).gap(num_samples=1)


def test_free_arguments_of_every_shape() -> None:
    """A covariance of the guide's own for each datum: the best MultivariateNormal is the posterior."""
    loadings = torch.tensor([1.0, 0.8])

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=positive)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
            pyro.sample("x", dist.Normal(c @ loadings, scale), obs=x)

    def guide(x: Tensor) -> None:
        cov = pyro.param("cov", torch.tensor([[0.5, 0.1], [0.1, 0.4]]), constraint=constraints.positive_definite)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.MultivariateNormal(x[:, None] * torch.tensor([0.3, 0.3]), covariance_matrix=cov))

    evidence = dist.Normal(0.0, (loadings.square().sum() + 0.25).sqrt()).log_prob(X)
    gap = at_start(model, guide, X).gap(log_evidence=evidence, num_samples=30, steps=300, seed=0)
    assert gap.approximation == pytest.approx(0.0, abs=5e-3)
    assert gap.amortization > 1
