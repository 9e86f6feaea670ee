"""The gap of exact posteriors, and of guides over finite latents: against sums written by hand."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.gap import X, at_start, class_guide, mixture
from torch import Tensor
from torch.distributions.constraints import positive

from pyro_em import EM, SVI, fit

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
