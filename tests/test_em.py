"""EM's promises: what its stopping rule means, what happens when a step fails, and what its result holds."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex

from models import gaussian_mixture, poisson_mixture
from pyro_em import EM, SVI, GradientMStep, Status, fit

f64 = partial(torch.tensor, dtype=torch.float64)
X = f64([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4, 2.6, 3.1])
START = {"weights": f64([0.4, 0.6]), "locs": f64([-1.0, 1.5]), "scale": f64(1.0)}


def mixture(x):
    weights = pyro.param("weights", START["weights"], constraint=simplex)
    locs = pyro.param("locs", START["locs"])
    scale = pyro.param("scale", START["scale"], constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def log_evidence(params, x=X):
    """The mixture's log evidence, written by hand."""
    by_state = dist.Normal(params["locs"], params["scale"]).log_prob(x.unsqueeze(-1)) + params["weights"].log()
    return by_state.logsumexp(-1).sum().item()


def run(model=mixture, *args, init=None, callbacks=(), **options):
    return fit(model, *(args or (X,)), strategy=EM(**options), init=init, callbacks=callbacks, progress=False)


# Stopping -------------------------------------------------------------------------------------------------


def test_no_steps_evaluate_the_start():
    result = run(max_steps=0)
    assert result.objective == pytest.approx(log_evidence(START), abs=1e-12)
    assert (result.n_steps, result.status, len(result.history)) == (0, Status.MAX_STEPS, 1)
    torch.testing.assert_close(result.params, START)


def test_a_tolerance_of_zero_runs_all_steps():
    """Even once there is nothing left to gain."""
    result = run(max_steps=60, tol=0, fixed=("locs", "scale"))
    assert result.history.objective.diff().iloc[-1] < 1e-9
    assert (result.n_steps, result.status) == (60, Status.MAX_STEPS)
    assert not result.converged


def test_the_cap_is_never_convergence():
    """Two gains are too few to tell how fast they shrink, however large the tolerance."""
    result = run(max_steps=2, tol=1e6)
    assert (result.n_steps, result.status, result.converged) == (2, Status.MAX_STEPS, False)


# Deaths: SciPy's Nelder-Mead on the log-likelihood written out, to 1e-13; Hasselblad (1969) has the data.
# Old Faithful: scikit-learn's GaussianMixture(2, tol=1e-15, reg_covar=0); mclust's model VVV agrees to its 3 decimals.
GOLD = {poisson_mixture: -1989.9458598830, gaussian_mixture: -1130.2639602}
ADAM_STEPS = GradientMStep(partial(torch.optim.Adam, lr=0.02), num_steps=10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "tol", "m_step"),
    [
        (poisson_mixture, 1e-1, None),
        (poisson_mixture, 1e-2, None),
        (gaussian_mixture, 1e-1, None),
        (gaussian_mixture, 1e-3, None),
        (gaussian_mixture, 1e-1, ADAM_STEPS),
    ],
)
def test_the_gain_that_remains_is_below_the_tolerance(model, tol, m_step):
    """On the deaths the gains shrink fast before they shrink slowly: the first ratios promise too early an end."""
    result = run(model.model, *model.load(), tol=tol, m_step=m_step)
    assert result.status is Status.CONVERGED
    assert GOLD[model] - result.objective < tol


@pytest.mark.slow
@pytest.mark.parametrize("model", GOLD)
def test_gold_maxima(model):
    near = {"weights": f64([0.36, 0.64]), "rates": f64([1.256, 2.663])} if model is poisson_mixture else None
    result = run(model.model, *model.load(), tol=1e-6, init=near)
    assert result.status is Status.CONVERGED
    assert result.objective == pytest.approx(GOLD[model], abs=1e-5)


def test_nothing_free_converges_at_once():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(f64([0.4, 0.6])))
            pyro.sample("x", dist.Normal(f64([-1.0, 1.5])[z], 1.0), obs=x)

    result = run(model)
    assert (result.status, result.n_steps, len(result.history)) == (Status.CONVERGED, 0, 1)
    assert result.objective == pytest.approx(log_evidence(START), abs=1e-12)
    assert run(fixed=("weights", "locs", "scale")).status is Status.CONVERGED


def test_a_loader_is_read_to_its_end():
    """EM's E-step needs all data at once: batches are laid end to end."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=3)
    assert run(mixture, loader).objective == pytest.approx(run().objective, abs=1e-10)


def test_no_latents_is_maximum_likelihood():
    """Ordinary least squares, whose residual variance has divisor N."""
    x, y = X[:6], f64([0.3, -0.4, 1.1, 1.7, 2.9, 2.2])

    def model(x, y):
        slope, bias = pyro.param("slope", f64(0.0)), pyro.param("bias", f64(0.0))
        scale = pyro.param("scale", f64(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x + bias, scale), obs=y)

    result = run(model, x, y, tol=1e-10)
    design = torch.stack([x, torch.ones(6)], -1)
    exact = torch.linalg.lstsq(design, y).solution
    found = torch.stack([result.params["slope"], result.params["bias"]])
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=0)
    assert result.params["scale"].item() == pytest.approx((y - design @ exact).square().mean().sqrt().item(), abs=1e-5)
    assert result.converged and result.objective_kind == "log_evidence"


# What the result says -------------------------------------------------------------------------------------


def test_history_and_objective_belong_to_the_parameters():
    result = run(tol=1e-4)
    history = result.history
    assert history.step.tolist() == list(range(result.n_steps + 1))
    assert history.objective.iloc[-1] == result.objective == result.log_evidence
    assert result.objective == pytest.approx(log_evidence(result.params), abs=1e-10)
    assert history.objective.diff().dropna().min() > -1e-9
    assert history.seconds.is_monotonic_increasing and (history.restart == 0).all()


def test_callbacks_see_every_step_and_can_stop():
    seen = []

    def third(info):
        seen.append(info)
        return info.step == 3

    result = run(tol=0, max_steps=10, callbacks=[third, lambda info: "not True, so it goes on"])
    assert [info.step for info in seen] == [1, 2, 3]
    assert [info.objective for info in seen] == result.history.objective.tolist()[1:]
    assert (result.status, result.n_steps) == (Status.STOPPED, 3) and not result.converged


def test_a_callback_that_raises_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError):
        run(callbacks=[lambda info: 1 / 0])
    assert not dict(pyro.get_param_store())


def test_warm_starts_across_strategies():
    """Each begins exactly where the other ended."""
    svi = partial(fit, mixture, X, progress=False, strategy=SVI(optim=partial(torch.optim.Adam, lr=0.01), max_steps=3))
    first = run(max_steps=2)
    second = svi(init=first)
    third = run(init=second, max_steps=2)
    assert second.history.objective.iloc[0] == pytest.approx(first.objective, abs=1e-10)
    assert third.history.objective.iloc[0] == pytest.approx(second.objective, abs=1e-10)
    assert second.history.step.tolist() == [1, 2, 3]


def test_resumed_runs_equal_an_uninterrupted_one():
    whole, half = run(tol=0, max_steps=6), run(tol=0, max_steps=3)
    rest = run(tol=0, max_steps=3, init=half)
    torch.testing.assert_close(rest.params, whole.params, atol=1e-10, rtol=0)


# Fixed parameters and priors ------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", ["locs", ["weights", "scale"]])
def test_fixed_parameters_do_not_move_a_bit(fixed):
    start = run(max_steps=0).params
    moved = run(max_steps=5, fixed=fixed).params
    for name, value in moved.items():
        assert torch.equal(value, start[name]) == (name in ([fixed] if isinstance(fixed, str) else fixed))


def bayesian(x, y):
    """Conjugate: Dirichlet weights and Normal means of known variance, with labels y for all but the last rows."""
    weights = pyro.sample("weights", dist.Dirichlet(f64([3.0, 2.0])))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), obs=y)
        pyro.sample("x", dist.Normal(locs[z], 0.7), obs=x)


def test_conjugate_priors_give_the_posterior_mode():
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    result = run(bayesian, X, y, tol=1e-10)
    counts, sums = f64([4.0, 6.0]), torch.stack([X[:4].sum(), X[4:].sum()])
    weights = (counts + f64([2.0, 1.0])) / 13
    locs = (sums / 0.49 + 0.5 / 4) / (counts / 0.49 + 1 / 4)
    torch.testing.assert_close(result.params, {"weights": weights, "locs": locs}, atol=1e-5, rtol=0)
    assert result.objective_kind == "log_joint" and result.objective != result.log_evidence
    prior = dist.Dirichlet(f64([3.0, 2.0])).log_prob(weights) + dist.Normal(0.5, 2.0).log_prob(locs).sum()
    assert result.objective - result.log_evidence == pytest.approx(prior.item(), abs=1e-6)


def test_map_with_latents_is_a_fixed_point_of_the_hand_written_step():
    """At the mode, weights and means are those of the expected counts with the prior's pseudo-counts added."""
    result = run(bayesian, X, None, tol=1e-10, init={"locs": f64([-1.0, 1.5])})
    weights, locs = result.params["weights"], result.params["locs"]
    r = (dist.Normal(locs, 0.7).log_prob(X.unsqueeze(-1)) + weights.log()).softmax(-1)
    counts = r.sum(0)
    torch.testing.assert_close(weights, (counts + f64([2.0, 1.0])) / 13, atol=1e-4, rtol=0)
    exact = ((r * X.unsqueeze(-1)).sum(0) / 0.49 + 0.125) / (counts / 0.49 + 0.25)
    torch.testing.assert_close(locs, exact, atol=1e-4, rtol=0)


def test_without_priors_it_is_maximum_likelihood():
    result = run(bayesian, X, None, tol=1e-10, priors=False, init={"locs": f64([-1.0, 1.5])})
    plain = run(tol=1e-10, fixed="scale", init={"scale": f64(0.7)})
    assert result.objective_kind == "log_evidence" and result.objective == result.log_evidence
    assert result.objective == pytest.approx(plain.objective, abs=1e-8)
    for name in ("weights", "locs"):
        torch.testing.assert_close(result.params[name], plain.params[name], atol=1e-4, rtol=0)


def test_a_subsample_is_the_same_in_e_and_m_step():
    """Else Q would be taken over other data than the posterior; the objective of one subsample must not fall."""
    seen = []

    def model(x):
        weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.0, 1.5]))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            seen.append(tuple(rows.tolist()))
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x[rows])

    result = run(model, max_steps=6, tol=0)
    changes = [a for a, b in itertools.pairwise(seen) if a != b]
    assert 4 <= len(changes) <= 6  # once per E-step, not once per run of the model
    assert result.log_evidence is None and math.isfinite(result.objective)
    assert result.n_steps == 6 and not result.converged


# Numerical M-steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "start"), [(torch.sqrt, 1.0), (torch.log, 2.7), (torch.rsqrt, 1.0), (torch.reciprocal, 1.0)]
)
def test_a_link_of_one_parameter_beyond_whose_domain_another_lies(link, start):
    """The root of a negative location is nobody's argument; its gradient, zero times NaN, is nobody's either."""

    def model(x):
        locs = pyro.sample("locs", dist.Laplace(f64([0.0, 0.0]), 2.0).to_event(1))
        spread = pyro.param("spread", f64(start), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(f64([0.4, 0.6])))
            pyro.sample("x", dist.Normal(locs[z], link(spread)), obs=x)

    init = {"locs": f64([-1.5, 2.0])}
    found = run(model, init=init, tol=1e-8)
    assert found.converged and set(found.explain().owner) == {"closed form", "statistics"}
    traced = run(model, init=init, tol=1e-8, m_step=GradientMStep())
    assert found.objective == pytest.approx(traced.objective, abs=1e-5)
    torch.testing.assert_close(found.params, traced.params, rtol=1e-3, atol=1e-3)
