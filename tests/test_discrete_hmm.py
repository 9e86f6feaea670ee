"""DiscreteHMM sites against the same model written out with pyro.markov, and against Pyro where Pyro is exact."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em import EM, SVI, GradientMStep, fit

K, N, T = 3, 4, 7
positive, simplex = constraints.positive, constraints.simplex
quiet = partial(fit, progress=False)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SERIES = 2 * numbers(12, 2, seed=1)
COUNTS = torch.poisson(torch.full((N, T), 2.0).double(), generator=torch.Generator().manual_seed(2))
COVARIATE = numbers(T, seed=3)


def emissions() -> tuple[Tensor, Tensor]:
    locs = pyro.param("locs", numbers(K, 2, seed=4))
    return locs, pyro.param("scales", numbers(K, 2, seed=5).exp(), constraint=positive)


def series(x: Tensor) -> None:
    """Probabilities as parameters."""
    init = pyro.param("init", numbers(K, seed=6).softmax(-1), constraint=simplex)
    trans = pyro.param("trans", numbers(K, K, seed=7).softmax(-1), constraint=simplex)
    locs, scales = emissions()
    pyro.sample("x", dist.DiscreteHMM(init.log(), trans.log(), dist.Normal(locs, scales).to_event(1)), obs=x)


def series_in_a_loop(x: Tensor) -> None:
    init = pyro.param("init", numbers(K, seed=6).softmax(-1), constraint=simplex)
    trans = pyro.param("trans", numbers(K, K, seed=7).softmax(-1), constraint=simplex)
    locs, scales = emissions()
    z = pyro.sample("z", dist.Categorical(init))
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], scales[z]).to_event(1), obs=x[t])


def many(x: Tensor) -> None:
    """Logits as parameters, sequences in a plate."""
    init, trans = pyro.param("init", numbers(K, seed=6)), pyro.param("trans", numbers(K, K, seed=7))
    rate = pyro.param("rate", numbers(K, seed=8).exp(), constraint=positive)
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", dist.DiscreteHMM(init, trans, dist.Poisson(rate)), obs=x)


def many_in_a_loop(x: Tensor) -> None:
    init, trans = pyro.param("init", numbers(K, seed=6)), pyro.param("trans", numbers(K, K, seed=7))
    rate = pyro.param("rate", numbers(K, seed=8).exp(), constraint=positive)
    with pyro.plate("sequences", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=init))
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=trans[z]))
            pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[:, t])


def stepwise(x: Tensor) -> None:
    """Transitions that follow a covariate, rates that differ from time to time."""
    base, slope = pyro.param("base", numbers(K, K, seed=9)), pyro.param("slope", numbers(K, K, seed=10))
    rates = pyro.param("rates", numbers(T, K, seed=11).exp(), constraint=positive)
    logits = base + slope * COVARIATE[:, None, None]
    with pyro.plate("sequences", len(x)):
        pyro.sample("x", dist.DiscreteHMM(torch.zeros(K).double(), logits, dist.Poisson(rates)), obs=x)


def stepwise_in_a_loop(x: Tensor) -> None:
    base, slope = pyro.param("base", numbers(K, K, seed=9)), pyro.param("slope", numbers(K, K, seed=10))
    rates = pyro.param("rates", numbers(T, K, seed=11).exp(), constraint=positive)
    with pyro.plate("sequences", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(K).double()))
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=base[z] + slope[z] * COVARIATE[t]))
            pyro.sample(f"x_{t}", dist.Poisson(rates[t, z]), obs=x[:, t])


PAIRS = {
    "series": (series, series_in_a_loop, SERIES),
    "many": (many, many_in_a_loop, COUNTS),
    "stepwise": (stepwise, stepwise_in_a_loop, COUNTS),
}
every_pair = pytest.mark.parametrize(("one", "other", "x"), PAIRS.values(), ids=PAIRS)


@every_pair
def test_em_steps_are_those_of_the_loop(one, other, x):
    found, expected = (quiet(m, x, strategy=EM(max_steps=4, tol=0)) for m in (one, other))
    torch.testing.assert_close(
        found.history.objective.tolist(), expected.history.objective.tolist(), rtol=1e-12, atol=0
    )
    for name, value in expected.params.items():
        torch.testing.assert_close(found.params[name], value, rtol=0, atol=1e-9)
    assert set(found.explain().owner) <= {"closed form", "newton"}


@every_pair
def test_evidence_is_that_of_pyro(one, other, x):
    result = quiet(one, x, strategy=EM(max_steps=0))
    with pyro.get_param_store().scope(), torch.no_grad():
        trace = pyro.poutine.trace(one).get_trace(x)
        expected = float(trace.log_prob_sum())
    assert result.log_evidence == pytest.approx(expected, abs=1e-10)


@every_pair
def test_posteriors_are_those_of_the_loop(one, other, x):
    found, expected = (quiet(m, x, strategy=EM(max_steps=2, tol=0)).posterior() for m in (one, other))
    loop = [f"z_{t}" for t in range(T if x is COUNTS else len(x))]
    probs = torch.stack([expected[z].probs for z in loop], -2)
    torch.testing.assert_close(found["x.states"].probs, probs, rtol=0, atol=1e-9)
    best = expected.map()
    assert torch.equal(found.map()["x.states"], torch.stack([best[z] for z in loop], -1))
    one_chain, other_chain = found.chain("x.states"), expected.chain("z_0")
    torch.testing.assert_close(one_chain.filtered, other_chain.filtered[..., 1:, :], rtol=0, atol=1e-9)
    torch.testing.assert_close(one_chain.predicted, other_chain.predicted[..., 1:, :], rtol=0, atol=1e-9)
    torch.testing.assert_close(one_chain.pairwise, other_chain.pairwise[..., 1:, :, :], rtol=0, atol=1e-9)
    assert one_chain.log_predictive.sum() == pytest.approx(found.log_evidence, abs=1e-9)


def test_states_are_drawn_from_the_posterior():
    post = quiet(many, COUNTS, strategy=EM(max_steps=2, tol=0)).posterior()
    torch.manual_seed(0)
    drawn = torch.nn.functional.one_hot(post.sample(2000)["x.states"], K).double().mean(0)
    probs = post["x.states"].probs
    assert ((drawn - probs).abs() <= 5 * (probs * (1 - probs) / 2000).sqrt() + 1e-12).all()


def test_new_sequences_of_another_length():
    result = quiet(many, COUNTS, strategy=EM(max_steps=2, tol=0))
    post = result.posterior(COUNTS[:2, :3])
    assert post["x.states"].probs.shape == (2, 3, K)
    assert post.log_likelihood.shape == (2,)
    assert result.posterior(COUNTS[:, :3]).log_likelihood[:2].tolist() == pytest.approx(post.log_likelihood.tolist())


def test_prediction_draws_data_behind_posterior_states():
    far = torch.tensor([0.0, 0.0, 50.0, 50.0, 0.0, 50.0]).double()

    def model(x):
        locs = torch.tensor([0.0, 50.0]).double()
        trans = pyro.param("trans", torch.full((2, 2), 0.5).double(), constraint=simplex)
        pyro.sample("x", dist.DiscreteHMM(torch.zeros(2).double(), trans.log(), dist.Normal(locs, 1.0)), obs=x)

    drawn = quiet(model, far, strategy=EM(max_steps=1)).predict(num_samples=50, seed=0)["x"]
    assert drawn.shape == (50, 6)
    torch.testing.assert_close(drawn.mean(0), far, atol=1.0, rtol=0)


def test_masked_sequences_do_not_count():
    def model(x, kept):
        trans = pyro.param("trans", numbers(K, K, seed=7))
        rate = pyro.param("rate", numbers(K, seed=8).exp(), constraint=positive)
        with pyro.plate("sequences", len(x)), pyro.poutine.mask(mask=kept):
            pyro.sample("x", dist.DiscreteHMM(torch.zeros(K).double(), trans, dist.Poisson(rate)), obs=x)

    kept = torch.tensor([True, False, True, True])
    masked = quiet(model, COUNTS, kept, strategy=EM(max_steps=3, tol=0))
    alone = quiet(model, COUNTS[kept], torch.tensor(True), strategy=EM(max_steps=3, tol=0))
    assert masked.log_evidence == pytest.approx(alone.log_evidence, abs=1e-10)
    for name, value in alone.params.items():
        torch.testing.assert_close(masked.params[name], value, rtol=0, atol=1e-10)


def test_missing_entries():
    def model(x):
        locs = pyro.param("locs", numbers(2, seed=4))
        emission = dist.Normal(locs, 1.0).mask(~x.isnan().unsqueeze(-1))
        pyro.sample("x", dist.DiscreteHMM(torch.zeros(2).double(), torch.zeros(2, 2).double(), emission), obs=x)

    x = numbers(8, seed=12)
    holed = x.clone()
    holed[2:4] = torch.nan
    result = quiet(model, holed, strategy=EM(max_steps=5, tol=0))
    assert result.params["locs"].isfinite().all()
    independent = quiet(model, torch.cat([x[:2], x[4:]]), strategy=EM(max_steps=5, tol=0))
    torch.testing.assert_close(result.params["locs"], independent.params["locs"], rtol=0, atol=1e-10)


def test_a_latent_chooses_the_chain():
    """Its parameters go to the gradient, whose evidence is exact."""

    def model(x):
        share = pyro.param("share", torch.tensor([0.4, 0.6]).double(), constraint=simplex)
        trans, rate = pyro.param("trans", numbers(2, K, K, seed=7)), numbers(K, seed=8).exp()
        with pyro.plate("sequences", len(x)):
            c = pyro.sample("c", dist.Categorical(share))
            pyro.sample(
                "x", dist.DiscreteHMM(torch.zeros(K).double(), trans[c].unsqueeze(-3), dist.Poisson(rate)), obs=x
            )

    result = quiet(model, COUNTS, strategy=EM(max_steps=3, tol=0))
    trans, share = result.params["trans"], result.params["share"]
    rate = numbers(K, seed=8).exp()
    each = [dist.DiscreteHMM(torch.zeros(K).double(), t[None], dist.Poisson(rate)).log_prob(COUNTS) for t in trans]
    expected = (torch.stack(each) + share.log()[:, None]).logsumexp(0).sum()
    assert result.log_evidence == pytest.approx(float(expected), abs=1e-8)
    assert result.history.objective.diff().dropna().min() >= -1e-8


def test_a_long_series():
    """Ten thousand steps, states far apart."""
    x = numbers(10_000, seed=13) + 40.0 * (torch.arange(10_000) // 50 % 2)

    def model(x):
        trans = pyro.param("trans", torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double(), constraint=simplex)
        locs = pyro.param("locs", torch.tensor([5.0, 30.0]).double())
        scale = pyro.param("scale", torch.tensor(3.0).double(), constraint=positive)
        pyro.sample("x", dist.DiscreteHMM(torch.zeros(2).double(), trans.log(), dist.Normal(locs, scale)), obs=x)

    result = quiet(model, x, strategy=EM())
    assert result.converged
    torch.testing.assert_close(result.params["locs"], torch.tensor([0.0, 40.0]).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(result.params["trans"].diagonal(), torch.full((2,), 0.98).double(), atol=0.005, rtol=0)
    assert torch.equal(result.posterior().map()["x.states"], torch.arange(10_000) // 50 % 2)


def test_em_and_svi_agree():
    exact = quiet(many, COUNTS, strategy=EM())
    noisy = quiet(many, COUNTS, strategy=SVI(optim=partial(torch.optim.Adam, lr=0.1), max_steps=300), seed=0)
    assert noisy.log_evidence == pytest.approx(exact.log_evidence, abs=0.5)
    there = quiet(many, COUNTS, strategy=EM(max_steps=0), init=noisy)
    assert there.log_evidence == pytest.approx(noisy.log_evidence, abs=1e-9)


def test_the_gradient_climbs_the_evidence():
    """Without latents of its own, Q of a site is its evidence, which a step may raise further than the bound."""
    steps = [quiet(series, SERIES, strategy=EM(max_steps=1, m_step=m)) for m in (None, GradientMStep(num_steps=5))]
    start = quiet(series, SERIES, strategy=EM(max_steps=0)).objective
    assert start < steps[0].objective <= steps[1].objective


def test_icl_counts_the_states():
    one, other = (quiet(m, COUNTS, strategy=EM(max_steps=4, tol=0)) for m in (many, many_in_a_loop))
    assert one.icl == pytest.approx(other.icl, abs=1e-8)


def test_a_name_that_is_none():
    post = quiet(many, COUNTS, strategy=EM(max_steps=1)).posterior()
    with pytest.raises(KeyError, match=r"x\.states"):
        post.chain("z")
