"""Components of regressions that collapse onto as few data as they have coefficients."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from chain_models import MODELS
from pyro.distributions.constraints import positive, simplex

from models import regression_mixture
from pyro_em import EM, DegenerateError, fit

f64 = partial(torch.tensor, dtype=torch.float64)
fit = partial(fit, progress=False)
FLOOR = 1e-3  # as a scale, of the data's standard deviation


def lines(x, y):
    weights = pyro.param("weights", f64([0.2, 0.8]), constraint=simplex)
    slopes, levels = pyro.param("slopes", f64([2.0, 0.0])), pyro.param("levels", f64([10.0, 0.0]))
    scales = pyro.param("scales", f64([0.1, 1.0]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(levels[z] + slopes[z] * x, scales[z]), obs=y)


def data():
    """Three points on one line, far from the others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 23, dtype=torch.float64)
    y = 0.5 * x + 0.7 * torch.randn(23, generator=generator, dtype=torch.float64)
    on_line = torch.tensor([4, 11, 17])
    y[on_line] = 10 + 2 * x[on_line]
    return x, y


@pytest.mark.parametrize("on_degenerate", ["raise", "drop"])
def test_a_scale_beside_an_affine_mean_is_watched(on_degenerate):
    with pytest.raises(DegenerateError, match=r"scale of Normal, given by parameter 'scales' at \[0\]"):
        fit(lines, *data(), strategy=EM(on_degenerate=on_degenerate))


def test_a_scale_beside_an_affine_mean_is_held_at_its_floor():
    x, y = data()
    found = fit(lines, x, y, strategy=EM(on_degenerate="floor", tol=1e-8))
    assert found.converged
    assert found.history.objective.diff().iloc[2:].min() > -1e-9
    assert found.params["scales"][0].item() == pytest.approx(FLOOR * y.std(correction=0).item(), rel=1e-6)
    means = found.params["levels"] + found.params["slopes"] * x.unsqueeze(-1)
    by_state = dist.Normal(means, found.params["scales"]).log_prob(y.unsqueeze(-1)) + found.params["weights"].log()
    assert found.log_evidence == pytest.approx(by_state.logsumexp(-1).sum().item(), abs=1e-6)


@pytest.mark.parametrize("on_degenerate", ["raise", "floor", "drop"])
def test_restarts_that_collapse_are_out(on_degenerate):
    """Leisch's data, whose maximum flexmix finds too."""
    strategy = EM(restarts=5, on_degenerate=on_degenerate)
    found = fit(regression_mixture.model, *regression_mixture.load(), strategy=strategy, seed=0)
    assert found.converged and found.objective == pytest.approx(-642.532, abs=1e-2)


def test_autoregressive_states_that_collapse_are_held():
    model, x = MODELS["autoregressive"]
    found = fit(model, *x, strategy=EM(max_steps=15, tol=0, on_degenerate="floor"))
    assert all(torch.isfinite(v).all() for v in found.params.values())
    assert found.params["scale"].min().item() >= (1 - 1e-6) * FLOOR * x[0][1:].std(correction=0).item()
    assert found.objective == pytest.approx(found.history.objective.iloc[-1], abs=1e-9)
