"""Components that run out of data stay finite, and do not hold up the others."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import lower_cholesky, positive, simplex
from shared.collapse import (
    XY,
    X,
    accelerated,
    chain,
    climbs,
    f64,
    fulls,
    is_finite,
    normals,
    run,
)

from pyro_em import EM, fit

# Empty components -----------------------------------------------------------------------------------------

EVERY_POLICY = pytest.mark.parametrize("policy", ["raise", "floor", "drop", "restart"])


@accelerated
@EVERY_POLICY
def test_a_component_without_data_stays_finite(policy, accelerate):
    """Its responsibilities are zero to the last bit; nothing speaks of its location and scale."""
    init = {"locs": f64([4.0, 6.0, 1e6])}
    result = run(
        partial(normals, num=3), X[2:], init=init, on_degenerate=policy, accelerate=accelerate, max_steps=15, tol=0
    )
    assert is_finite(result) and climbs(result)
    assert result.params["weights"][2] < 1e-12
    assert torch.isfinite(result.posterior()["z"].probs).all()
    assert torch.isfinite(result.predict(num_samples=3, seed=0)["x"]).all()


def spread_over_all(kind):
    """A mixture of two and a spread that all components share, on the first two components' data."""

    def model(x, locs):
        num = len(locs)
        weights = pyro.param("weights", torch.full((num,), 1 / num), constraint=simplex)
        locs = pyro.param("locs", locs)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            if kind == "normal":
                scale = pyro.param("scale", f64(1.0), constraint=positive)
                fn = dist.Normal(locs[z, 0], scale)
            elif kind == "student":
                scale = pyro.param("scale", f64(1.0), constraint=positive)
                fn = dist.StudentT(5.0, locs[z, 0], scale)
            elif kind == "diagonal":
                scale = pyro.param("scale", f64([1.0, 1.0]), constraint=positive)
                fn = dist.Normal(locs[z], scale).to_event(1)
            else:
                tril = pyro.param("tril", torch.eye(2), constraint=lower_cholesky)
                fn = dist.MultivariateNormal(locs[z], scale_tril=tril)
            pyro.sample("x", fn, obs=x[:, 0] if kind in ("normal", "student") else x)

    return model


@pytest.mark.parametrize("kind", ["normal", "student", "diagonal", "full"])
def test_a_component_without_data_does_not_hold_up_the_others(kind):
    """What it shares with them goes on as if it were not there."""
    model, locs = spread_over_all(kind), f64([[0.0, 0.0], [5.0, 1.0], [1e6, 0.0]])
    x = torch.cat([XY[2:] - 6.0, XY])

    def after(locs):
        return fit(model, x, locs, strategy=EM(max_steps=5, tol=0), progress=False).params

    three, two = after(locs), after(locs[:2])
    for name, value in two.items():
        found = three[name][:2] if name in ("weights", "locs") else three[name]
        torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@accelerated
def test_a_covariance_without_data_stays_finite(accelerate):
    result = run(fulls, XY[2:], init={"locs": f64([[1e6, 0.0], [5.0, 1.0]])}, accelerate=accelerate)
    assert is_finite(result) and climbs(result) and result.converged
    torch.testing.assert_close(result.params["trils"][0], torch.eye(2))


@accelerated
def test_a_poisson_without_data_stays_finite(accelerate):
    def model(x):
        weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
        rates = pyro.param("rates", f64([3.0, 1e6]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)

    x = f64([0.0, 2.0, 3.0, 1.0, 5.0])
    result = run(model, x, accelerate=accelerate)
    assert is_finite(result) and result.converged
    assert result.params["rates"][0].item() == pytest.approx(x.mean().item(), abs=1e-9)
    zeros = run(model, torch.zeros(4), accelerate=accelerate)
    assert is_finite(zeros) and zeros.objective == pytest.approx(0.0, abs=1e-6)


@accelerated
def test_a_state_that_a_chain_never_visits_stays_finite(accelerate):
    result = run(chain, X[2:8], init={"locs": f64([1e6, 5.0])}, accelerate=accelerate)
    assert is_finite(result) and climbs(result)
    torch.testing.assert_close(result.params["trans"].sum(-1), torch.ones(2))
