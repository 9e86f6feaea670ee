"""Probabilities that start at zero stay at zero, to the bit, whoever maximises and wherever they are read."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em import EM, SVI, FitResult, GradientMStep, RandomDraws, RandomResponsibilities, fit

quiet = partial(fit, progress=False)
f64 = partial(torch.tensor, dtype=torch.float64)
LEFT_TO_RIGHT = f64([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])
X = torch.cat([torch.linspace(-1, 1, 6), torch.linspace(4, 6, 7), torch.linspace(-1.5, 0.5, 5)]).double()


def chain(x: Tensor, trans: Tensor = LEFT_TO_RIGHT) -> None:
    init = pyro.param("init", f64([1.0, 0.0, 0.0]), constraint=constraints.simplex)
    trans = pyro.param("trans", trans, constraint=constraints.simplex)
    locs = pyro.param("locs", f64([0.3, 4.0, 0.1]))
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def zeros_are_kept(params: dict[str, Tensor]) -> bool:
    kept = torch.equal(params["trans"] == 0, LEFT_TO_RIGHT == 0)
    return kept and torch.equal(params["init"], f64([1.0, 0.0, 0.0]))


STRATEGIES = {
    "plain": EM(),
    "squarem": EM(accelerate="squarem"),
    "draws": EM(start=RandomDraws(), max_steps=20),
    "responsibilities": EM(start=RandomResponsibilities(), max_steps=20, on_degenerate="floor"),
    "gradient": EM(m_step=GradientMStep(), max_steps=5),
    "svi": SVI(max_steps=30),
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_zeros_stay(strategy):
    result = quiet(chain, X, strategy=strategy, seed=1)
    assert zeros_are_kept(result.params)
    torch.testing.assert_close(result.params["trans"].sum(-1), torch.ones(3).double(), rtol=0, atol=1e-12)


def test_the_fit_is_that_of_zeros_written_as_constants():
    def constant(x):
        stay = pyro.param("stay", f64([0.6, 0.7]), constraint=constraints.unit_interval)
        zero, one = torch.zeros(()).double(), torch.ones(()).double()
        rows = [[stay[0], 1 - stay[0], zero], [zero, stay[1], 1 - stay[1]], [zero, zero, one]]
        trans = torch.stack([torch.stack(row) for row in rows])
        locs = pyro.param("locs", f64([0.3, 4.0, 0.1]))
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z] if t else f64([1.0, 0.0, 0.0])))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])

    one, other = quiet(chain, X, strategy=EM(tol=1e-6)), quiet(constant, X, strategy=EM(tol=1e-6))
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=1e-5)
    torch.testing.assert_close(one.params["locs"], other.params["locs"], atol=1e-3, rtol=0)


def test_impossible_states_are_impossible_afterwards():
    """However far the data are from what is possible: no state is entered against a zero."""
    result = quiet(chain, X, strategy=EM())
    back = torch.cat([X, torch.full((3,), 200.0).double(), torch.full((3,), -200.0).double()])
    path = torch.stack([result.posterior(back).map()[f"z_{t}"] for t in range(len(back))])
    assert (path.diff() >= 0).all()


def test_init_with_zeros():
    start = {"trans": f64([[0.5, 0.25, 0.25], [0.0, 0.7, 0.3], [0.0, 0.2, 0.8]])}
    result = quiet(chain, X, strategy=EM(max_steps=10), init=start)
    assert torch.equal(result.params["trans"] == 0, start["trans"] == 0)


def test_a_warm_start_keeps_them():
    first = quiet(chain, X, strategy=EM(max_steps=3, tol=0))
    again = quiet(chain, X, strategy=EM(max_steps=3, tol=0), init=first)
    whole = quiet(chain, X, strategy=EM(max_steps=6, tol=0))
    assert zeros_are_kept(again.params)
    torch.testing.assert_close(again.params["trans"], whole.params["trans"], rtol=0, atol=1e-10)


def test_fixed_values_stay_to_the_bit():
    result = quiet(chain, X, strategy=EM(fixed=("trans",), max_steps=5))
    assert torch.equal(result.params["trans"], LEFT_TO_RIGHT)


def test_the_program_sees_them_in_use():
    result = quiet(chain, X, strategy=EM(max_steps=2))
    with result.use():
        trace = pyro.poutine.trace(chain).get_trace(X)
    assert torch.equal(trace.nodes["trans"]["value"] == 0, LEFT_TO_RIGHT == 0)


def test_draws_of_predictions_and_guides_see_them():
    """Data that ask for a step back by more nats than the logarithm of the smallest number."""
    result = quiet(chain, X, strategy=EM())
    back = torch.cat([X, f64([200.0, 200.0, -200.0, -200.0, 300.0, 300.0])])
    drawn = result.predict(back, num_samples=5, seed=0)
    assert (torch.stack([drawn[f"z_{t}"] for t in range(len(back))]).diff(dim=0) >= 0).all()
    for guide in (result.guide, quiet(chain, X, strategy=SVI(max_steps=2)).guide):
        trace = pyro.poutine.trace(guide).get_trace(back)
        assert (torch.stack([trace.nodes[f"z_{t}"]["value"] for t in range(len(back))]).diff() >= 0).all()
        assert set(trace.nodes) == {"_INPUT", "_RETURN", *(f"z_{t}" for t in range(len(back)))}


INSIDE = f64([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])


@pytest.mark.parametrize("strategy", [EM(max_steps=3), SVI(max_steps=3)])
@pytest.mark.parametrize(("own", "start"), [(INSIDE, LEFT_TO_RIGHT), (LEFT_TO_RIGHT, INSIDE), (INSIDE, INSIDE)])
@pytest.mark.parametrize("in_file", [True, False])
def test_a_file_has_the_zeros_of_the_fit(own, start, strategy, in_file, tmp_path):
    """Whether the model had them, or others, and also a file from before zeros were written down."""
    one = quiet(chain, X, own, strategy=strategy, init={"trans": start})
    one.save(tmp_path / "fit.pt")
    if not in_file:
        payload = torch.load(tmp_path / "fit.pt", weights_only=True)
        del payload["zeros"]
        torch.save(payload, tmp_path / "fit.pt")
    two = FitResult.load(tmp_path / "fit.pt", chain)
    back = torch.cat([X, f64([200.0, 200.0, -200.0, -200.0, 300.0, 300.0])])
    with one.use():
        expected = pyro.param("trans").detach().clone()
    with two.use():
        assert torch.equal(pyro.param("trans"), expected)
        assert torch.equal(pyro.param("trans") == 0, start == 0)
    assert all(torch.equal(value, two.posterior(back).map()[name]) for name, value in one.posterior(back).map().items())
    assert (one.aic, one.objective) == (two.aic, two.objective)
    again = [quiet(chain, X, own, strategy=EM(max_steps=2), init=result) for result in (one, two)]
    assert torch.equal(again[0].params["trans"], again[1].params["trans"])


def test_the_callers_tensor_stays():
    start = LEFT_TO_RIGHT.clone()
    quiet(chain, X, start, strategy=EM(max_steps=2))
    assert torch.equal(start, LEFT_TO_RIGHT)
