"""Shapes and supports at which Pyro's own posteriors fail or mislead: against sums written out by hand."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import simplex, unit_interval
from pyro.infer import config_enumerate
from torch.distributions import Normal

from pyro_em import EM, SVI, fit

f64 = partial(torch.tensor, dtype=torch.float64)
EVALUATE = EM(max_steps=0)
ADAM = SVI(optim=partial(torch.optim.Adam, lr=0.05), max_steps=30, patience=None)


def evaluate(model, *args):
    return fit(model, *args, strategy=EVALUATE, progress=False)


@pytest.mark.parametrize(("num", "states"), [(1, 1), (1, 3), (4, 1), (3, 3)])
def test_posterior_of_one_datum_or_one_state(num, states):
    """Pyro's compute_marginals raises at either (issue 3102)."""
    weights, locs = f64([0.5, 0.3, 0.2])[:states], f64([-1.0, 0.5, 2.0])[:states]
    x = f64([0.3, 1.1, -0.7, 2.0])[:num]

    def model(x):
        loc = pyro.param("loc", locs)
        with pyro.plate("data", num):
            z = pyro.sample("z", dist.Categorical(weights / weights.sum()))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    joint = (weights / weights.sum()).log() + Normal(locs, 1.0).log_prob(x.unsqueeze(-1))
    result = evaluate(model, x)
    post = result.posterior()
    assert result.log_evidence == pytest.approx(joint.logsumexp(-1).sum().item(), abs=1e-12)
    torch.testing.assert_close(post["z"].probs, joint.softmax(-1), atol=1e-12, rtol=0)
    assert post.map()["z"].tolist() == joint.argmax(-1).tolist()
    assert post.sample(5)["z"].shape == (5, num)


def test_posterior_of_a_binomial_latent():
    """compute_marginals answers as if the support were {0, 1}."""
    x = f64([0.2, 1.9, 3.4])

    def model(x):
        p = pyro.param("p", f64(0.3), constraint=unit_interval)
        with pyro.plate("data", 3):
            n = pyro.sample("n", dist.Binomial(3, p))
            pyro.sample("x", dist.Normal(n, 0.7), obs=x)

    prior = f64([0.343, 0.441, 0.189, 0.027])
    joint = prior.log() + Normal(torch.arange(4.0), 0.7).log_prob(x.unsqueeze(-1))
    found = evaluate(model, x).posterior()
    torch.testing.assert_close(found["n"].probs, joint.softmax(-1), atol=1e-12, rtol=0)
    assert found.map()["n"].tolist() == joint.argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["dist", "poutine"])
def test_a_masked_latent_still_sums_to_one(kind):
    """Pyro scores each of its states by one instead, so that every masked datum adds log K to the evidence."""
    x, seen = f64([0.2, 1.9, -1.0]), torch.tensor([True, False, True])
    weights, locs = f64([0.3, 0.7]), f64([-1.0, 1.5])

    def model(x):
        loc = pyro.param("loc", locs)
        with pyro.plate("data", 3):
            if kind == "dist":
                z = pyro.sample("z", dist.Categorical(weights).mask(seen))
                pyro.sample("x", dist.Normal(loc[z], 1.0).mask(seen), obs=x)
            else:
                with poutine.mask(mask=seen):
                    z = pyro.sample("z", dist.Categorical(weights))
                    pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    joint = weights.log() + Normal(locs, 1.0).log_prob(x.unsqueeze(-1))
    result = evaluate(model, x)
    assert result.log_evidence == pytest.approx(joint.logsumexp(-1)[seen].sum().item(), abs=1e-12)
    expected = torch.where(seen.unsqueeze(-1), joint.softmax(-1), weights)
    torch.testing.assert_close(result.posterior()["z"].probs, expected, atol=1e-12, rtol=0)


def left_to_right(x):
    """A chain that starts in state 0 and never goes back; its zeros are logits of -inf."""
    allowed = torch.ones(3, 3).triu().bool()
    logits = pyro.param("logits", torch.zeros(3, 3))
    locs = pyro.param("locs", f64([-1.0, 0.0, 1.0]))
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits.masked_fill(~allowed, -torch.inf)[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 0.5), obs=x[t])


@pytest.mark.parametrize("strategy", [EM(), ADAM], ids=["em", "svi"])
def test_impossible_transitions_stay_impossible(strategy):
    x = f64([-1.4, -0.8, -1.1, 0.3, -0.9, 0.2, 1.5, 0.1, 1.2])
    result = fit(left_to_right, x, strategy=strategy, progress=False)
    assert result.objective > result.history.objective.iloc[0] + 1.0
    assert all(value.isfinite().all() for value in result.params.values())
    post = result.posterior()
    path = torch.stack([post.map()[f"z_{t}"] for t in range(len(x))])
    assert (path.diff() >= 0).all()
    for t in range(len(x) - 1):
        table = post.joint(f"z_{t}", f"z_{t + 1}").probs
        assert (table.tril(-1) == 0).all()
        assert table.sum().item() == pytest.approx(1.0, abs=1e-10)


def ragged(x, lengths):
    """Chains of unequal length, padded and masked."""
    trans = pyro.param("trans", f64([[0.7, 0.3], [0.2, 0.8]]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    with pyro.plate("chains", len(x)):
        z = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], 0.8), obs=x[:, t])


@pytest.mark.parametrize("strategy", [EVALUATE, ADAM], ids=["em", "svi"])
def test_padding_changes_nothing(strategy):
    x = f64([[-1.1, 0.2, 1.8, 1.4], [0.7, 1.9, 0.0, 0.0], [-0.4, -1.3, 1.2, 0.0]])
    lengths = torch.tensor([4, 2, 3])
    padded = torch.cat([x, torch.full((3, 2), torch.nan)], 1)
    short = fit(ragged, x, lengths, strategy=strategy, progress=False)
    long = fit(ragged, padded, lengths, strategy=strategy, progress=False)
    assert long.history.objective.tolist() == pytest.approx(short.history.objective.tolist(), abs=1e-10)
    assert long.log_evidence == pytest.approx(short.log_evidence, abs=1e-10)
    for t in range(4):
        found, expected = (result.posterior()[f"z_{t}"].probs for result in (long, short))
        torch.testing.assert_close(found[t < lengths], expected[t < lengths])


# Models that already carry Pyro's own handlers ------------------------------------------------------------


def plain(x, infer=None):
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(f64([0.4, 0.6])), infer=infer or {})
        pyro.sample("x", dist.Normal(locs[z], 0.8), obs=x)


DECORATED = {
    "config": config_enumerate(plain),
    "sequential": config_enumerate(plain, "sequential"),
    "infer-sequential": partial(plain, infer={"enumerate": "sequential"}),
    "infer-parallel": partial(plain, infer={"enumerate": "parallel", "num_samples": 3}),
    "expand": config_enumerate(plain, expand=True),
}


@pytest.mark.parametrize("name", DECORATED)
@pytest.mark.parametrize("strategy", [EM(tol=1e-9), ADAM], ids=["em", "svi"])
def test_the_models_own_enumeration_changes_nothing(name, strategy):
    x = f64([-1.2, 0.3, 1.9, 2.2])
    expected = fit(plain, x, strategy=strategy, progress=False)
    found = fit(DECORATED[name], x, strategy=strategy, progress=False)
    assert found.objective == pytest.approx(expected.objective, abs=1e-12)
    torch.testing.assert_close(found.params, expected.params)


@pytest.mark.parametrize("strategy", [EM(tol=1e-9), ADAM], ids=["em", "svi"])
def test_a_scaled_model_counts_every_nat_so_often(strategy):
    x = f64([-1.2, 0.3, 1.9, 2.2])
    once = fit(plain, x, strategy=strategy, progress=False)
    twice = fit(poutine.scale(plain, 2.0), x, strategy=strategy, progress=False)
    assert twice.history.objective[0] == pytest.approx(2 * once.history.objective[0], abs=1e-12)
    torch.testing.assert_close(twice.posterior()["z"].probs.sum(-1), torch.ones(4))
    if isinstance(strategy, EM):
        assert twice.objective == pytest.approx(2 * once.objective, abs=1e-7)


def test_a_conditioned_model():
    """What `poutine.condition` fixes is data."""
    x, z = f64([-1.2, 0.3]), torch.tensor([0, 1])
    result = evaluate(poutine.condition(plain, {"z": z}), x)
    expected = Normal(f64([-1.0, 1.5]), 0.8).log_prob(x) + f64([0.4, 0.6]).log()
    assert result.log_evidence == pytest.approx(expected.sum().item(), abs=1e-12)
