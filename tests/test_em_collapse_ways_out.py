"""Ways out of a collapse: drop the component, or start again."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive
from shared.collapse import (
    MODELS,
    X,
    accelerated,
    chain,
    each_shared,
    f64,
    is_finite,
    normals,
    run,
)

from pyro_em import DegenerateError, KMeans

# Drop -----------------------------------------------------------------------------------------------------


@accelerated
@pytest.mark.parametrize(("model", "x", "param"), [MODELS["normals"], MODELS["fulls"]], ids=["normals", "fulls"])
def test_drop_leaves_the_state_without_probability(model, x, param, accelerate):
    result = run(model, x, on_degenerate="drop", accelerate=accelerate)
    torch.testing.assert_close(result.params["weights"], f64([0.0, 1.0]), atol=1e-12, rtol=0)
    assert is_finite(result) and result.converged
    rest = dist.Normal(x.mean(0), x.std(0, correction=0)) if model is normals else None
    if rest is not None:  # what is left is one normal
        assert result.objective == pytest.approx(rest.log_prob(x).sum().item(), abs=1e-2)
    probs = result.posterior()["z"].probs
    torch.testing.assert_close(probs, f64([0.0, 1.0]).expand(len(x), 2), atol=1e-9, rtol=0)  # torch clamps at 2e-16


@accelerated
def test_drop_keeps_the_others(accelerate):
    options = {"tol": 1e-6, "max_steps": 4000, "accelerate": accelerate}
    x = torch.cat([X, X[2:] + 10.0])
    three = run(
        partial(normals, num=3), x, init={"locs": f64([0.0, 5.0, 15.0])}, on_degenerate="drop", **options
    ).params
    two = run(normals, x, init={"locs": f64([5.0, 15.0])}, **options).params
    assert three["weights"][0] < 1e-12
    for name, value in two.items():
        torch.testing.assert_close(three[name][1:], value, atol=1e-3, rtol=1e-3)


@accelerated
def test_drop_of_two_components_in_turn(accelerate):
    x = torch.cat([f64([-20.0, -20.0]), X])
    result = run(
        partial(normals, num=3),
        x,
        init={"locs": f64([-20.0, 0.0, 5.0])},
        on_degenerate="drop",
        accelerate=accelerate,
    )
    assert is_finite(result)
    torch.testing.assert_close(result.params["weights"], f64([0.0, 0.0, 1.0]), atol=1e-12, rtol=0)


def test_drop_in_a_chain():
    """A state that the chain no longer visits, or a refusal: nothing in between."""
    try:
        result = run(chain, X[:7], on_degenerate="drop", max_steps=30)
    except DegenerateError as error:
        assert error.param == "scales"
        return
    assert is_finite(result)
    assert result.posterior()["z_0"].probs[..., 0].max() < 1e-9
    assert result.params["init"][0] < 1e-9 and result.params["trans"][1, 0] < 1e-9


@each_shared
def test_drop_refuses_what_all_states_share(model, x, param):
    with pytest.raises(DegenerateError, match=f"'{param}'"):
        run(model, x, on_degenerate="drop")


def test_drop_refuses_a_state_whose_probability_is_no_parameter():
    def model(x):
        locs = pyro.param("locs", f64([0.0, 5.0]))
        scales = pyro.param("scales", f64([1.0, 1.0]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(f64([0.3, 0.7])))
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)

    with pytest.raises(DegenerateError, match=r"'scales' at \[0\]"):
        run(model, X, on_degenerate="drop", max_steps=30)


def test_drop_refuses_a_state_whose_probability_is_fixed():
    with pytest.raises(DegenerateError, match=r"'scales' at \[0\]"):
        run(normals, X, on_degenerate="drop", fixed="weights", max_steps=30)


# Restart --------------------------------------------------------------------------------------------------


class After:
    """Collapses as often as it is told to, then starts well."""

    def __init__(self, bad):
        self.bad, self.calls = bad, 0

    def place(self, engine):
        self.calls += 1
        (latent,) = engine.variables()
        first = torch.arange(len(X)) < (2 if self.calls <= self.bad else 6)
        engine.place({latent.name: (~first).long()}, {})


@accelerated
def test_restart_goes_on_from_another_start(accelerate):
    start = After(2)
    x = torch.cat([X[:2], X[2:].sort().values])
    result = run(normals, x, on_degenerate="restart", start=start, max_steps=3, tol=1e6, accelerate=accelerate)
    assert start.calls == 3
    assert set(result.history.restart) == {0, 1, 2}  # the runs that collapsed are kept
    assert is_finite(result) and result.history.step.tolist()[0] == 0


@pytest.mark.parametrize(("model", "x", "param"), [MODELS["normals"], MODELS["fulls"]], ids=["normals", "fulls"])
def test_restart_ends_without_a_collapse_or_says_so(model, x, param):
    """Where every start collapses, the last error says it; never a splendid fit."""
    try:
        result = run(model, x, on_degenerate="restart", max_steps=10)
    except DegenerateError as error:
        assert error.param == param
        return
    assert is_finite(result)
    assert result.history.restart.iloc[-1] > 0
    assert result.params[param][0].abs().max() > 1e-3


@each_shared
def test_restart_gives_up(model, x, param):
    """k-means finds the points each time."""
    with pytest.raises(DegenerateError, match=f"'{param}'"):
        run(model, x, on_degenerate="restart", start=KMeans("x"))


def test_restarts_and_kmeans_and_a_collapse():
    x = torch.cat([X[:2] - 30.0, X[2:], X[2:] + 12.0])
    for policy in ("raise", "floor", "drop", "restart"):
        try:
            result = run(partial(normals, num=3), x, restarts=3, start=KMeans("x"), on_degenerate=policy, max_steps=60)
        except DegenerateError as error:
            assert policy in ("raise", "restart") and error.param == "scales"
            continue
        assert is_finite(result)
