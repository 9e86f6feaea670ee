"""The gap of a guide: against closed forms, sums written by hand, and conjugate posteriors."""

import itertools
import math
import re
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import positive, simplex
from untouched import untouched

from pyro_em import EM, SVI, FitResult, ModelError, fit

ADAM = partial(torch.optim.Adam, lr=0.02)
X = torch.tensor([-2.1, -1.7, 0.2, 0.9, 1.6, 2.4], dtype=torch.float64)


def at_start(model: Any, guide: Any, *args: Any) -> FitResult:
    return fit(model, *args, strategy=SVI(guide, max_steps=0), seed=0, progress=False)


def mixture(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.5])[z], 0.8), obs=x)


def class_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.6))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=torch.stack([-slope * x, slope * x], -1)))


# Exact posteriors -----------------------------------------------------------------------------------------------------


def test_em_has_no_gap() -> None:
    result = fit(mixture, X, strategy=EM(), progress=False)
    gap = result.gap()
    assert gap.log_evidence == gap.elbo == pytest.approx(result.log_evidence, abs=1e-9)
    assert (gap.total, gap.approximation, gap.amortization) == (0.0, 0.0, 0.0)


def test_em_counts_weights_on_its_own_data_only() -> None:
    result = fit(mixture, X, strategy=EM(max_steps=2), weights=torch.arange(6.0), progress=False)
    assert result.gap().elbo == pytest.approx(result.log_evidence, abs=1e-9)
    assert result.gap(X).elbo == pytest.approx(result.posterior().log_evidence, abs=1e-9)


def test_latents_that_are_all_summed_out_leave_no_gap() -> None:
    assert at_start(mixture, None, X).gap().total == 0.0


# Guides over finite latents -------------------------------------------------------------------------------------------


def test_amortised_classes_by_hand() -> None:
    result = at_start(mixture, class_guide, X)
    log_p = torch.tensor([0.4, 0.6]).log() + dist.Normal(torch.tensor([-1.0, 1.5]), 0.8).log_prob(X[:, None])
    log_q = torch.stack([-0.6 * X, 0.6 * X], -1).log_softmax(-1)
    gap = result.gap()
    assert gap.elbo == pytest.approx((log_q.exp() * (log_p - log_q)).sum().item(), abs=1e-9)
    assert gap.log_evidence == pytest.approx(log_p.logsumexp(-1).sum().item(), abs=1e-9)
    kl = (log_q.exp() * (log_q - log_p.log_softmax(-1))).sum().item()
    assert gap.total == gap.amortization + gap.approximation == pytest.approx(kl, abs=1e-9)
    assert gap.approximation == pytest.approx(0.0, abs=1e-6)  # a table can be any posterior
    assert gap.elbo_stderr == gap.amortization_stderr == 0.0


def test_a_guide_that_is_sure_and_wrong() -> None:
    """Where q is nearly zero its slopes are too, and a climb by gradients would not leave."""
    init = {"slope": torch.tensor(-40.0)}
    result = fit(mixture, X, strategy=SVI(class_guide, max_steps=0), init=init, progress=False)
    gap = result.gap()
    assert gap.total > 30
    assert gap.approximation == pytest.approx(0.0, abs=1e-9)


def test_scaled_and_plated_sites_by_hand() -> None:
    """Two observed sites in plates inside the data's, under one scale; a guide with a scale of its own plate."""
    y = torch.stack([X, X.flip(0), X.roll(1)], -1)

    def model(y: Tensor) -> None:
        with pyro.poutine.scale(scale=2.0):
            with pyro.plate("data", len(y), dim=-2):
                z = pyro.sample("z", dist.Bernoulli(0.3))
                with pyro.plate("items", 3, dim=-1):
                    loc = pyro.param("loc", torch.tensor([0.1, 0.5, 1.0]))
                    pyro.sample("y", dist.Normal(loc * z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.poutine.scale(scale=2.0), pyro.plate("data", len(y), dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=slope * y.sum(-1, keepdim=True)))

    gap = at_start(model, guide, y).gap()
    z = torch.tensor([0.0, 1.0])
    loc = torch.tensor([0.1, 0.5, 1.0])
    log_p = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(loc * z[:, None], 1.0).log_prob(y[:, None]).sum(-1)
    log_q = dist.Bernoulli(logits=0.4 * y.sum(-1, keepdim=True)).log_prob(z)
    assert gap.elbo == pytest.approx(2 * (log_q.exp() * (log_p - log_q)).sum().item(), abs=1e-9)
    assert gap.log_evidence == pytest.approx(2 * log_p.logsumexp(-1).sum().item(), abs=1e-9)
    assert gap.approximation == pytest.approx(0.0, abs=1e-6)


def two_causes(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.5), constraint=positive)
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.3 + 0.4 * a))
        pyro.sample("x", dist.Normal(a + b, scale), obs=x)


def apart(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor([0.5, 0.3]))
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Bernoulli(logits=slope[0] * x))
        pyro.sample("b", dist.Bernoulli(logits=slope[1] * x))


def together(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor([0.5, 0.3]))
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(logits=slope[0] * x))
        pyro.sample("b", dist.Bernoulli(logits=slope[1] * x - a))


def joint_table(x: Tensor) -> Tensor:
    """log p(x_n, a, b), shape (N, 2, 2)."""
    rows = []
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        prior = dist.Bernoulli(0.4).log_prob(torch.tensor(a)) + dist.Bernoulli(0.3 + 0.4 * a).log_prob(torch.tensor(b))
        rows.append(prior + dist.Normal(a + b, 0.5).log_prob(x))
    return torch.stack(rows, -1).reshape(-1, 2, 2)


def mean_field_optimum(log_p: Tensor) -> Tensor:
    """The best E_q[log p - log q] over q(a) q(b) for each datum, on a fine grid of both probabilities."""
    p = torch.linspace(1e-6, 1 - 1e-6, 2001, dtype=torch.float64)
    q = torch.stack([1 - p, p], -1)
    entropy = -(q * q.log()).sum(-1)
    values = torch.einsum("ia,jb,nab->nij", q, q, log_p) + entropy[:, None] + entropy
    return values.amax((1, 2))


@pytest.mark.parametrize("guide", [apart, together])
def test_two_latents_apart_and_together(guide: Any) -> None:
    x = torch.tensor([0.2, 0.9, 1.1, 2.2])
    gap = at_start(two_causes, guide, x).gap()
    log_p = joint_table(x)
    logits_a = 0.5 * x[:, None, None]
    a, b = torch.tensor([0.0, 1.0])[:, None], torch.tensor([0.0, 1.0])
    logits_b = 0.3 * x[:, None, None] - (a if guide is together else 0.0)
    log_q = dist.Bernoulli(logits=logits_a).log_prob(a) + dist.Bernoulli(logits=logits_b).log_prob(b)
    assert gap.elbo == pytest.approx((log_q.exp() * (log_p - log_q)).sum().item(), abs=1e-9)
    assert gap.log_evidence == pytest.approx(log_p.logsumexp((1, 2)).sum().item(), abs=1e-9)
    best = gap.log_evidence if guide is together else mean_field_optimum(log_p).sum().item()
    assert gap.elbo + gap.amortization == pytest.approx(best, abs=1e-5)
    assert (gap.approximation > 0.01) is (guide is apart)


def test_a_chain_with_a_factorised_guide_by_hand() -> None:
    """A factor of the model over two sites of a guide that has them apart."""
    x = torch.tensor([0.3, -0.4, 1.2])
    trans = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        z = 0
        for t in pyro.markov(range(3)):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.7))
        for t in range(3):
            pyro.sample(f"z_{t}", dist.Categorical(logits=torch.stack([-slope * x[t], slope * x[t]])))

    gap = at_start(model, guide, x).gap()
    log_q = torch.stack([-0.7 * x, 0.7 * x], -1).log_softmax(-1)
    elbo, evidence = 0.0, []
    for path in itertools.product((0, 1), repeat=3):
        log_p = sum(trans[a, b].log() for a, b in zip((0, *path), path, strict=False))
        log_p = log_p + sum(dist.Normal(torch.tensor([-1.0, 1.0])[z], 1.0).log_prob(x[t]) for t, z in enumerate(path))
        q = sum(log_q[t, z] for t, z in enumerate(path))
        elbo, evidence = elbo + (q.exp() * (log_p - q)).item(), [*evidence, log_p]
    assert gap.elbo == pytest.approx(elbo, abs=1e-9)
    assert gap.log_evidence == pytest.approx(torch.stack(evidence).logsumexp(0).item(), abs=1e-9)
    assert 0 < gap.approximation < gap.total


def test_states_that_are_impossible() -> None:
    """A guide that excludes what the model excludes, and one that excludes more than it need."""

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
            pyro.sample("x", dist.Normal(shift + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        odds = pyro.param("odds", torch.tensor(0.2))
        logits = torch.stack([odds, -odds, torch.tensor(-torch.inf)])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    gap = at_start(model, guide, X).gap()
    assert math.isfinite(gap.elbo)
    assert gap.approximation == pytest.approx(0.0, abs=1e-6)


def test_finite_sites_that_are_no_tables_have_no_split() -> None:
    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Binomial(2, 0.4))
            pyro.sample("x", dist.Normal(shift + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Binomial(2, logits=slope * x))

    gap = at_start(model, guide, X).gap()
    assert gap.amortization is gap.approximation is None
    assert "['z'] in the guide are not tables" in gap.reason
    assert gap.total > 0


# Continuous latents ---------------------------------------------------------------------------------------------------


def factor_analysis(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(1.3), constraint=positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * c, 0.5), obs=x)


def linear_guide(x: Tensor) -> None:
    gain = pyro.param("gain", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Normal(gain * x, 0.3))


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
    assert gap.total == -gap.elbo

    assert re.search(reason, gap.reason)


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


# Quadrature -----------------------------------------------------------------------------------------------------------


def test_gamma_rates_of_counts_are_negative_binomial() -> None:
    """A positive latent with a skewed posterior, a guide of another family, and a finite latent beside it."""
    x = torch.tensor([0.0, 1.0, 3.0, 8.0, 20.0])

    def model(x: Tensor) -> None:
        factor = pyro.param("factor", torch.tensor(3.0), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate * factor**z), obs=x)

    def guide(x: Tensor) -> None:
        spread = pyro.param("spread", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal((x + 1).log() - 0.5, spread))

    expected = torch.stack(
        [
            math.log(weight) + dist.NegativeBinomial(2.0, probs=factor / (1 + factor)).log_prob(x)
            for weight, factor in ((0.7, 1.0), (0.3, 3.0))
        ]
    ).logsumexp(0)
    found = at_start(model, guide, x).evidence_by_quadrature(num_points=61, width=12.0)
    torch.testing.assert_close(found.log_likelihood, expected, atol=1e-7, rtol=0.0)
    assert found.error >= (found.log_likelihood - expected).abs().sum().item()


@pytest.mark.parametrize("scale", [0.02, 5.0])
def test_a_guide_far_too_narrow_or_wide_does_not_matter(scale: float) -> None:
    def guide(x: Tensor) -> None:
        gain = pyro.param("gain", torch.tensor(0.9))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Normal(gain * x, scale))

    found = at_start(factor_analysis, guide, X).evidence_by_quadrature()
    expected = dist.Normal(0.0, (1.3**2 + 0.25) ** 0.5).log_prob(X)
    torch.testing.assert_close(found.log_likelihood, expected, atol=1e-6, rtol=0.0)


def test_single_precision() -> None:
    torch.set_default_dtype(torch.float32)
    found = at_start(factor_analysis, linear_guide, X.float()).evidence_by_quadrature()
    expected = dist.Normal(0.0, (1.3**2 + 0.25) ** 0.5).log_prob(X)
    torch.testing.assert_close(found.log_likelihood, expected, atol=1e-5, rtol=0.0)


def test_three_dimensions_in_two_sites() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=positive)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            d = pyro.sample("d", dist.Normal(0.0, 2.0))
            pyro.sample("x", dist.Normal(c.sum(-1) + d, scale), obs=x)

    def guide(x: Tensor) -> None:
        gain = pyro.param("gain", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Normal(gain * x[:, None].expand(-1, 2), 0.8).to_event(1))
            pyro.sample("d", dist.Normal(gain * x, 0.8))

    found = at_start(model, guide, X).evidence_by_quadrature(num_points=9, width=4.5)
    expected = dist.Normal(0.0, (2 + 4 + 0.25) ** 0.5).log_prob(X).sum().item()
    assert found.log_evidence == pytest.approx(expected, abs=5e-4)


def test_quadrature_refuses_what_it_cannot_integrate() -> None:
    with pytest.raises(ModelError, match="log_evidence is exact already"):
        fit(mixture, X, strategy=EM(max_steps=1), progress=False).evidence_by_quadrature()
    with pytest.raises(ModelError, match="'z' is discrete"):
        at_start(mixture, class_guide, X).evidence_by_quadrature()
    with pytest.raises(ValueError, match="num_points must be odd"):
        at_start(factor_analysis, linear_guide, X).evidence_by_quadrature(num_points=10)

    def shared(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ModelError, match=r"in one plate of data; \['loc'\] lie in \[\(\)\]"):
        at_start(shared, None, X).evidence_by_quadrature()

    def wide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(c.sum(-1), pyro.param("s", torch.ones(()), constraint=positive)), obs=x)

    with pytest.raises(ModelError, match=r"at most 3 continuous latents per datum; \['c'\] have 4"):
        at_start(wide, None, X).evidence_by_quadrature()


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
