"""The gradient M-step under any optimiser, and what EM does when a step fails."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex
from untouched import refused, untouched

from pyro_em import EM, DecreaseError, GradientMStep, Status, fit

f64 = partial(torch.tensor, dtype=torch.float64)
X = f64([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4, 2.6, 3.1])
SGD = partial(torch.optim.SGD, lr=0.01)


def mixture(x, drift=lambda: 0.0):
    """``drift`` is what the model should not have: something that changes between its runs."""
    weights = pyro.param("weights", torch.tensor([0.4, 0.6], dtype=x.dtype), constraint=simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.5], dtype=x.dtype))
    scale = pyro.param("scale", torch.tensor(1.0, dtype=x.dtype), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z] + drift(), scale), obs=x)


def run(*args, data=X, callbacks=(), **options):
    return fit(mixture, data, *args, strategy=EM(**options), callbacks=callbacks, progress=False)


def by_name(name):
    return {"lr": 0.0 if name == "locs" else 0.02}


def by_module_and_name(module, name):
    return by_name(name)


# Optimisers -----------------------------------------------------------------------------------------------

OPTIMISERS = {
    "sgd": SGD,
    "adam": partial(torch.optim.Adam, lr=0.02),
    "lbfgs": partial(torch.optim.LBFGS, max_iter=5),
    "lbfgs-wolfe": partial(torch.optim.LBFGS, max_iter=5, line_search_fn="strong_wolfe"),
    "pyro-adam": pyro.optim.Adam({"lr": 0.02}),
    "pyro-clipped": pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 5.0, "lrd": 0.999}),
    "pyro-clip-args": pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 5.0}),
    "pyro-schedule": pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.99}
    ),
    "default": None,
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_any_optimiser_climbs(name):
    """Never down, and far enough."""
    m_step = None if name == "default" else GradientMStep(OPTIMISERS[name], num_steps=5)
    result = run(m_step=m_step, max_steps=25, tol=0)
    assert result.history.objective.diff().dropna().min() > -1e-9
    assert result.objective > result.history.objective.iloc[0] + 0.5
    assert result.n_steps == 25


@pytest.mark.parametrize(
    "optim",
    [
        pyro.optim.Adam(by_name),
        pyro.optim.Adam(by_module_and_name),
        pyro.optim.ClippedAdam(by_name),
        pyro.optim.SGD(by_name),
    ],
)
def test_options_by_parameter(optim):
    """A learning rate of zero holds a parameter; the others move."""
    start, result = run(max_steps=0), run(m_step=GradientMStep(optim), max_steps=3, tol=0)
    moved = {name for name, value in result.params.items() if not torch.equal(value, start.params[name])}
    assert moved == {"weights", "scale"}


def test_clipping_limits_a_step():
    """By Pyro's rule, each parameter's gradient on its own."""
    m_step = GradientMStep(pyro.optim.SGD({"lr": 1.0}, {"clip_norm": 1e-3}))
    start, result = run(max_steps=0), run(m_step=m_step, max_steps=1, tol=0)
    assert (result.params["locs"] - start.params["locs"]).norm().item() == pytest.approx(1e-3, rel=1e-6)


def test_one_gradient_step_is_ascent_on_the_log_evidence():
    """Fisher's identity: at the E-step's parameters, the gradient of Q is that of log p(x)."""
    locs = f64([-1.0, 1.5]).requires_grad_()
    by_state = dist.Normal(locs, 1.0).log_prob(X.unsqueeze(-1)) + f64([0.4, 0.6]).log()
    (slope,) = torch.autograd.grad(by_state.logsumexp(-1).sum(), locs)
    result = run(m_step=GradientMStep(SGD), max_steps=1, tol=0)
    torch.testing.assert_close(result.params["locs"], locs.detach() + 0.01 * slope, atol=1e-12, rtol=0)


def test_momentum_carries_over_between_m_steps():
    """Ten M-steps of one update are not ten first updates; Adam's are all of size lr at first."""
    once = run(m_step=GradientMStep(partial(torch.optim.SGD, lr=0.001, momentum=0.9)), max_steps=10, tol=0)
    plain = run(m_step=GradientMStep(partial(torch.optim.SGD, lr=0.001)), max_steps=10, tol=0)
    assert once.objective > plain.objective + 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_either_precision_converges(dtype):
    result = run(data=X.to(dtype))
    assert result.status is Status.CONVERGED
    assert {value.dtype for value in result.params.values()} == {dtype}
    assert result.objective == pytest.approx(run().objective, abs=2e-3)


# Steps that fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1e6, 1e300, math.inf])
def test_a_step_that_lowers_q_is_undone_and_in_the_end_stalls(lr):
    start = run(max_steps=0)
    result = run(m_step=GradientMStep(partial(torch.optim.SGD, lr=lr)), max_steps=100)
    assert (result.status, result.converged) == (Status.STALLED, False)
    assert result.n_steps < 100
    assert result.history.objective.nunique() == 1
    assert result.objective == pytest.approx(start.objective, rel=1e-14)
    assert all(torch.equal(value, start.params[name]) for name, value in result.params.items())


def test_a_step_too_long_is_halved_until_it_climbs():
    result = run(m_step=GradientMStep(partial(torch.optim.SGD, lr=3.0)), max_steps=20, tol=0)
    gains = result.history.objective.diff().dropna()
    assert gains.iloc[0] == 0.0 and gains.min() > -1e-9
    assert result.objective > result.history.objective.iloc[0] + 0.5


def test_a_stall_is_no_convergence():
    """No gain at all, step after step, must not read as "nothing remains to be gained"."""
    result = run(m_step=GradientMStep(partial(torch.optim.SGD, lr=1e-300)), max_steps=30)
    assert not result.converged


def test_a_creeping_m_step_is_no_convergence():
    result = run(m_step=GradientMStep(partial(torch.optim.SGD, lr=1e-7)), max_steps=30, tol=1e-3)
    assert result.status is Status.MAX_STEPS


# A model that is not deterministic ------------------------------------------------------------------------


class Drift:
    """Nothing until step 2 is over, then an offset to the data that makes every parameter a worse fit."""

    def __init__(self, offset=3.0):
        self.offset, self.now = offset, 0.0

    def __call__(self):
        return self.now

    def callback(self, info):
        self.now = self.offset if info.step >= 2 else 0.0


# One small update a step: Q, and with it the objective, cannot recover from the drift within the step.
SMALL = {"m_step": GradientMStep(partial(torch.optim.SGD, lr=1e-5)), "max_steps": 5, "tol": 0}


def falling(**options):
    """Let the objective fall at step 3: its M-step sees the drift throughout, the E-step before it did not."""
    drift = Drift()
    return run(drift, callbacks=[drift.callback], **SMALL, **options)


def test_a_fall_raises():
    with refused(DecreaseError, r"fell from -\d+\.\d+ to -\d+\.\d+ at iteration 3.*not deterministic"):
        falling()


def test_a_fall_warns_and_goes_on():
    with untouched(), pytest.warns(RuntimeWarning, match="fell from .* at iteration 3"):
        result = falling(on_decrease="warn")
    assert (result.n_steps, result.status) == (5, Status.MAX_STEPS)
    assert result.history.objective[3] < result.history.objective[2]


def test_a_fall_is_reverted():
    before = run(**{**SMALL, "max_steps": 2})
    result = falling(on_decrease="revert")
    assert (result.n_steps, result.status, result.converged) == (3, Status.DECREASED, False)
    assert result.objective == before.objective == result.history.objective.iloc[-1]
    torch.testing.assert_close(result.params, before.params, atol=0, rtol=0)


def test_no_number_is_no_fall():
    """A model that turns NaN ends the fit with the last good parameters, whatever `on_decrease` says."""
    before = run(**{**SMALL, "max_steps": 2})
    drift = Drift(math.nan)
    result = run(drift, callbacks=[drift.callback], **{**SMALL, "max_steps": 20})
    assert result.status in (Status.NON_FINITE, Status.STALLED) and not result.converged
    assert result.objective == before.objective
    torch.testing.assert_close(result.params, before.params, atol=0, rtol=0)


def test_a_parameter_that_nothing_reads_is_in_no_ones_way():
    """A climb of one element after the other, at the kink of a Laplace, passes it by."""

    def model(x):
        pyro.param("never", f64([0.7, 0.3]))
        m = pyro.param("m", f64([0.0, 3.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.5))).long()
            pyro.sample("x", dist.Laplace(m[z], 1.0), obs=x)

    torch.manual_seed(0)
    x = torch.cat([torch.randn(20), 3 + torch.randn(20)]).to(torch.float64)
    found = fit(model, x, strategy=EM(), progress=False)
    assert found.params["never"].tolist() == [0.7, 0.3]
