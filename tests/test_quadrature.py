"""The evidence of continuous latents by quadrature: against conjugate models, and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.gap import X, at_start, class_guide, factor_analysis, linear_guide, mixture
from torch import Tensor
from torch.distributions.constraints import positive

from pyro_em import EM, ModelError, fit


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
