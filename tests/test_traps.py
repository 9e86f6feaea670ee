"""Where Pyro gives a wrong number without a word: each case is right here, beside Pyro's value where it has one."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import positive, simplex
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch.distributions import Normal

from pyro_em import EM, SVI, GradientMStep, fit

ONE_STEP = SVI(optim=partial(torch.optim.SGD, lr=1.0), max_steps=1)
SGD = partial(torch.optim.SGD, lr=0.05)
NAN = torch.nan
f64 = partial(torch.tensor, dtype=torch.float64)


def params_of(model, *args):
    """The parameters a model starts from, in a store of their own."""
    with pyro.get_param_store().scope(), torch.no_grad():
        poutine.trace(model).get_trace(*args)
        return {name: value.clone() for name, value in pyro.get_param_store().items()}


def gradient(model, *args):
    """What one step of gradient ascent with learning rate 1 adds to unconstrained parameters."""
    before = params_of(model, *args)
    after = fit(model, *args, strategy=ONE_STEP, progress=False).params
    return {name: after[name] - before[name] for name in before}


# Factors that disagree by many nats -----------------------------------------------------------------------


def opposed(half, x):
    """Prior odds of exp(2 half) for state 0 against likelihood odds of exp(5 x) for state 1."""
    logits = pyro.param("logits", torch.tensor([half, -half], dtype=x.dtype))
    locs = torch.tensor([-2.5, 2.5], dtype=x.dtype)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=logits))
        pyro.sample("x", dist.Normal(locs[z], torch.ones((), dtype=x.dtype)), obs=x)


OPPOSED = pytest.mark.parametrize(
    ("dtype", "half", "x"),
    [(torch.float32, 12.5, [5.2, 5.1, -1.9]), (torch.float64, 22.0, [8.9, 8.7, 8.8])],
    ids=["float32", "float64"],
)


def exact_responsibilities(half, x):
    """p(z = 1 | x), in float64."""
    return torch.sigmoid(5 * torch.tensor(x, dtype=torch.float64) - 2 * half)


@OPPOSED
def test_posterior_of_opposed_factors(dtype, half, x):
    result = fit(opposed, half, torch.tensor(x, dtype=dtype), strategy=EM(max_steps=0), progress=False)
    found = result.posterior()["z"].probs[:, 1]
    torch.testing.assert_close(found.double(), exact_responsibilities(half, x), atol=1e-5, rtol=0)


@OPPOSED
def test_gradient_of_opposed_factors(dtype, half, x):
    data = torch.tensor(x, dtype=dtype)
    exact = exact_responsibilities(half, x).sum()  # d log p(x) / d logits[1]; the prior's own share is below 1e-10
    assert gradient(opposed, half, data)["logits"][1].item() == pytest.approx(exact.item(), rel=1e-4)

    TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(config_enumerate(opposed), lambda *_: None, half, data)
    wrong = -dict(pyro.get_param_store().named_parameters())["logits"].grad[1]
    assert abs(wrong - exact) > 0.2 * exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_an_opposed_chain_in_one_site(dtype):
    """`DiscreteHMM` sums its states inside its own density: 95 nats say it starts in state 1, the data say 0 by 96."""
    trans, locs, x, start = (
        f64(values).to(dtype) for values in ([[-200.0, 0.0], [0.0, -200.0]], [-4.0, 4.0], [6.0, -6.0], [-47.5, 47.5])
    )

    def model():
        logits = pyro.param("logits", start)
        pyro.sample("x", dist.DiscreteHMM(logits, trans, dist.Normal(locs, 1.0), duration=2), obs=x)

    logits = start.clone().requires_grad_()
    alpha = logits.log_softmax(-1)
    for value in x:
        alpha = (alpha.unsqueeze(-1) + trans.log_softmax(-1)).logsumexp(-2) + Normal(locs, 1.0).log_prob(value)
    alpha.logsumexp(-1).backward()
    assert logits.grad[0] > 0.5
    torch.testing.assert_close(gradient(model)["logits"], logits.grad, atol=1e-4, rtol=1e-3)


def test_probability_zero_is_zero():
    """torch clamps probs=0 to its machine epsilon, 36 nats; data that disagree by more would make up for that."""

    def model(x):
        z = pyro.sample("z", dist.Categorical(torch.tensor([1.0, 0.0])))
        loc = pyro.param("loc", torch.tensor([-5.0, 5.0]))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    x = torch.tensor(6.0)
    result = fit(model, x, strategy=EM(max_steps=0), progress=False)
    assert result.posterior()["z"].probs.tolist() == [1.0, 0.0]
    assert result.log_evidence == pytest.approx(Normal(-5.0, 1.0).log_prob(x).item(), abs=1e-9)


# Missing data ---------------------------------------------------------------------------------------------


def masked_rows(x, seen):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.5]))
    with pyro.plate("data", len(x)), poutine.mask(mask=seen):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 0.8), obs=x)


def masked_regression(x, seen):
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(1.1), constraint=positive)
    with pyro.plate("data", len(x)), poutine.mask(mask=seen):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def local_latents(x, seen):
    slope = pyro.param("slope", torch.tensor(0.7))
    with pyro.plate("data", len(x)), poutine.mask(mask=seen):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * h, 0.8), obs=x)


def local_guide(x, seen):
    a = pyro.param("a", torch.tensor(0.1))
    with pyro.plate("data", len(x)), poutine.mask(mask=seen):
        pyro.sample("h", dist.Delta(a + torch.where(seen, x.nan_to_num(), 0.0)))


ROWS = f64([-1.2, NAN, 0.9, 1.4, NAN, -0.3])
STEPS = SVI(optim=SGD, max_steps=20, patience=None)
POINT_STEPS = SVI(local_guide, optim=SGD, max_steps=20, patience=None)


@pytest.mark.parametrize(
    ("model", "strategy"),
    [(masked_regression, EM()), (masked_rows, STEPS), (masked_regression, STEPS), (local_latents, POINT_STEPS)],
    ids=["plain-em", "mixture-svi", "plain-svi", "guide-svi"],
)
def test_nan_under_a_mask_is_as_if_dropped(model, strategy):
    """Not only the end of the fit is the same, but every step to it."""
    seen = ~ROWS.isnan()
    masked = fit(model, ROWS, seen, strategy=strategy, progress=False)
    dropped = fit(model, ROWS[seen], seen[seen], strategy=strategy, progress=False)
    assert masked.history.objective.tolist() == pytest.approx(dropped.history.objective.tolist(), abs=1e-9)
    torch.testing.assert_close(masked.params, dropped.params, atol=1e-7, rtol=0)


def test_masked_rows_do_not_slow_em():
    """A latent without data would pull its prior's parameters towards their old values in every M-step."""
    x = torch.cat([ROWS.nan_to_num(), torch.zeros(54)])
    strategy = EM(
        max_steps=1, m_step=GradientMStep(partial(torch.optim.LBFGS, max_iter=100, line_search_fn="strong_wolfe"))
    )
    masked = fit(masked_rows, x, torch.arange(60) < 6, strategy=strategy, progress=False)
    dropped = fit(masked_rows, x[:6], torch.ones(6, dtype=bool), strategy=strategy, progress=False)
    torch.testing.assert_close(masked.params, dropped.params, atol=1e-4, rtol=0)


def test_nan_under_a_mask_reaches_the_same_maximum():
    seen, strategy = ~ROWS.isnan(), EM(tol=1e-9)
    masked = fit(masked_rows, ROWS, seen, strategy=strategy, progress=False)
    dropped = fit(masked_rows, ROWS[seen], seen[seen], strategy=strategy, progress=False)
    assert masked.objective == pytest.approx(dropped.objective, abs=1e-8)
    torch.testing.assert_close(masked.params, dropped.params, atol=1e-3, rtol=0)


def test_pyro_has_no_gradient_under_a_mask():
    with pyro.validation_enabled(False):
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        elbo.loss_and_grads(config_enumerate(masked_rows), lambda *_: None, ROWS, ~ROWS.isnan())
    assert dict(pyro.get_param_store().named_parameters())["locs"].grad.isnan().all()


ENTRIES = f64([[-1.1, NAN], [0.3, 1.9], [NAN, 2.2], [-0.8, -0.1], [NAN, NAN], [1.9, 2.5], [-1.6, 0.4], [2.2, 1.0]])


def masked_entries(x):
    locs = pyro.param("locs", torch.tensor([[-1.0, 0.0], [1.5, 2.0]]))
    scale = pyro.param("scale", torch.ones(2), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("x", dist.Normal(locs[z], scale).mask(~x.isnan()).to_event(1), obs=x)


@pytest.mark.parametrize(
    "strategy", [EM(tol=1e-10), SVI(optim=partial(torch.optim.Adam, lr=0.05), max_steps=600, patience=None)]
)
def test_missing_entries(strategy):
    """At the fitted parameters the hand-written log evidence agrees, and its gradient is zero."""
    result = fit(masked_entries, ENTRIES, strategy=strategy, progress=False)
    locs, scale = (result.params[name].clone().requires_grad_() for name in ("locs", "scale"))
    by_entry = Normal(locs.unsqueeze(1), scale).log_prob(ENTRIES.nan_to_num())
    by_state = torch.where(ENTRIES.isnan(), 0.0, by_entry).sum(-1) + torch.tensor([[0.4], [0.6]]).log()
    evidence = by_state.logsumexp(0).sum()
    assert result.log_evidence == pytest.approx(evidence.item(), abs=1e-9)
    for slope in torch.autograd.grad(evidence, [locs, scale]):
        assert slope.abs().max() < 1e-3


# obs_mask -------------------------------------------------------------------------------------------------


Y = f64([-1.2, 0.4, 0.9, 1.4, 2.0, -0.3])
SEEN = torch.tensor([True, False, True, True, False, True])


def imputed_mixture(y, seen):
    scale = pyro.param("scale", torch.tensor(0.9), constraint=positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("y", dist.Normal(torch.tensor([-1.0, 1.5])[z], scale), obs=y, obs_mask=seen)


def imputed_plain(y, seen):
    scale = pyro.param("scale", torch.tensor(0.9), constraint=positive)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.2, scale), obs=y, obs_mask=seen)


def imputed_local(y, seen):
    scale = pyro.param("scale", torch.tensor(0.9), constraint=positive)
    with pyro.plate("data", len(y)):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(h, scale), obs=y, obs_mask=seen)


def point_guide(y, seen):
    with pyro.plate("data", len(y)):
        pyro.sample("h", dist.Delta(torch.where(seen, 0.5 * y, 0.0)))


def observed_log_density(model, scale):
    """The log evidence (with point masses: the ELBO) of the observed entries only, by hand."""
    if model is imputed_mixture:
        by_state = Normal(torch.tensor([[-1.0], [1.5]]), scale).log_prob(Y) + torch.tensor([[0.4], [0.6]]).log()
        return by_state.logsumexp(0)[SEEN].sum()
    if model is imputed_plain:
        return Normal(0.2, scale).log_prob(Y)[SEEN].sum()
    h = torch.where(SEEN, 0.5 * Y, 0.0)
    return Normal(h, scale).log_prob(Y)[SEEN].sum() + Normal(0.0, 1.0).log_prob(h).sum()


@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        (imputed_mixture, EM(tol=1e-9)),
        (imputed_mixture, SVI(optim=SGD, max_steps=400, patience=None)),
        (imputed_plain, EM(tol=1e-9)),
        (imputed_plain, SVI(optim=SGD, max_steps=400, patience=None)),
        (imputed_local, SVI(point_guide, optim=SGD, max_steps=400, patience=None)),
    ],
    ids=["mixture-em", "mixture-svi", "plain-em", "plain-svi", "guide-svi"],
)
def test_obs_mask_leaves_unobserved_entries_out(model, strategy):
    """Value and maximum are those of the observed entries; the objective is not noisy."""
    result = fit(model, Y, SEEN, strategy=strategy, progress=False)
    start = observed_log_density(model, torch.tensor(0.9)).item()
    scale = result.params["scale"].clone().requires_grad_()
    end = observed_log_density(model, scale)
    assert float(result.history.objective[0]) == pytest.approx(start, abs=1e-9)
    assert result.objective == pytest.approx(end.item(), abs=1e-9)
    assert abs(torch.autograd.grad(end, scale)[0]) < 1e-3


def test_pyro_counts_imputed_draws():
    exact = observed_log_density(imputed_mixture, torch.tensor(0.9)).item()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    with pytest.warns(UserWarning, match="Found vars in model but not guide"):
        values = [-elbo.loss(config_enumerate(imputed_mixture), lambda *_: None, Y, SEEN) for _ in range(5)]
    assert max(values) - min(values) > 0.1
    assert all(abs(value - exact) > 0.1 for value in values)
