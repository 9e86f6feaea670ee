"""Posteriors know no scale: a datum that counts twice in the fit has the states it would have alone."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import brute_force
from pyro import poutine
from shared.rows import chains, f64, mixture
from torch import Tensor
from torch.distributions.constraints import simplex

from pyro_em import EM, SVI, FitResult, fit

X = f64([-2.1, -0.3, 0.2, 2.9])
SCALES = f64([2.0, 3.0, 0.5, 1.0])
SEQUENCES = torch.stack([X, X.flip(0) / 2], -1)


def pairs(x: Tensor) -> None:
    p = pyro.param("p", f64([0.4, 0.6]), constraint=simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(p))
        w = pyro.sample("w", dist.Bernoulli(0.2 + 0.5 * z))
        pyro.sample("x", dist.Normal(z - 2 * w, 1.0), obs=x)


def fitted(model: object, x: Tensor, scale: object = None, strategy: object = None) -> FitResult:
    def scaled(x: Tensor) -> None:
        with poutine.scale(scale=scale):
            model(x)  # type: ignore[operator]

    strategy = strategy or EM(max_steps=0)
    return fit(model if scale is None else scaled, x, strategy=strategy, seed=0, progress=False)


@pytest.mark.parametrize("strategy", [EM(max_steps=0), SVI(max_steps=0)])
@pytest.mark.parametrize("scale", [3.0, SCALES], ids=["one", "each"])
@pytest.mark.parametrize(("model", "x"), [(pairs, X), (mixture, X), (chains, SEQUENCES)])
def test_posteriors_are_those_without_a_scale(model, x, scale, strategy) -> None:
    posterior, plain = fitted(model, x, scale, strategy).posterior(), fitted(model, x).posterior()
    with fitted(model, x).use():
        oracle = brute_force(model, (x,))
    names = list(posterior.graph.variables)
    for name in names:
        torch.testing.assert_close(posterior.marginal(name), oracle.marginal(name), rtol=0, atol=1e-10)
    for pair in itertools.permutations(names, 2):
        joint = posterior.joint(*pair).probs
        torch.testing.assert_close(joint, plain.joint(*pair).probs, rtol=0, atol=1e-12)
        torch.testing.assert_close(joint.sum((-1, -2)), torch.ones(len(SCALES)), rtol=0, atol=1e-12)
    assert all(torch.equal(v, plain.map()[n]) for n, v in posterior.map().items())
    torch.testing.assert_close(posterior.log_likelihood, plain.log_likelihood, rtol=0, atol=1e-12)
    assert posterior.log_evidence == pytest.approx((scale * plain.log_likelihood).sum().item(), abs=1e-10)


def test_a_latent_above_scaled_data_counts_each_once() -> None:
    def groups(x: Tensor, scale: Tensor | float = SCALES) -> None:
        p = pyro.param("p", f64([0.4, 0.6]), constraint=simplex)
        z = pyro.sample("z", dist.Categorical(p))
        with pyro.plate("data", len(x)), poutine.scale(scale=scale):
            w = pyro.sample("w", dist.Bernoulli(0.2 + 0.5 * z))
            pyro.sample("x", dist.Normal(2.0 * w, 1.0), obs=x)

    posterior = fitted(groups, X).posterior()
    with fitted(groups, X).use():
        oracle = brute_force(groups, (X, 1.0))
    for name in ("z", "w"):
        torch.testing.assert_close(posterior.marginal(name), oracle.marginal(name), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [None, 3.0, SCALES], ids=["none", "one", "each"])
@pytest.mark.parametrize(("model", "x"), [(pairs, X), (mixture, X), (chains, SEQUENCES)])
def test_the_guide_gives_the_evidence_at_any_draw(model, x, scale) -> None:
    result = fitted(model, x, scale)
    drawn = poutine.trace(result.guide).get_trace(x)
    with result.use():
        joint = poutine.trace(poutine.replay(result.model, trace=drawn)).get_trace(x)
    found = joint.log_prob_sum() - drawn.log_prob_sum()
    assert found.item() == pytest.approx(result.log_evidence, abs=1e-9)
