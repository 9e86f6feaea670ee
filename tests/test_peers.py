"""Defects that were reproduced in other EM libraries, each as a test that this one has none of them.

The headings name what broke: hmmlearn, pomegranate 1.1.2, scikit-learn, ssm. Convergence, weights and minibatches,
which broke in them and in pycave and torchgmm too, have files of their own.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import positive, simplex
from shared.peers import EM_VARIANTS, FAST, X, every_em, gated, mixture, run
from shared.starts import f64, network

from pyro_em import EM, DegenerateError, FitResult, GradientMStep, KMeans, ModelError, RandomDraws, Status


def free_scales(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([0.0, 5.0]))
    scales = pyro.param("scales", f64([0.5, 1.0]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def evidence(params, x=X):
    """The log evidence of a Gaussian mixture, written by hand."""
    scale = params["scale"] if "scale" in params else params["scales"]
    by_state = dist.Normal(params["locs"], scale).log_prob(x.unsqueeze(-1)) + params["weights"].log()
    return by_state.logsumexp(-1).sum().item()


# Frozen parameters (pomegranate) --------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", ["weights", "locs", ("weights", "scale"), ("locs", "scale")])
@pytest.mark.parametrize("strategy", [*EM_VARIANTS.values(), FAST], ids=[*EM_VARIANTS, "svi"])
def test_fixed_parameters_are_the_same_bits(strategy, fixed):
    """Thirds, whose coordinates are not those of the start after a round trip."""
    init = {"weights": f64([1 / 3, 2 / 3]), "locs": f64([-1 / 3, 1.1]), "scale": f64(0.7)}
    names = (fixed,) if isinstance(fixed, str) else fixed
    start = run(mixture, X, strategy=EM(max_steps=0), init=init).params
    result = run(mixture, X, strategy=strategy(max_steps=7, fixed=fixed), init=init, seed=5)
    for name, value in result.params.items():
        assert torch.equal(value, start[name]) == (name in names), name


@pytest.mark.parametrize("strategy", [EM, partial(EM, accelerate="squarem"), partial(EM, restarts=2), FAST])
def test_fixed_networks_are_the_same_bits(strategy):
    net = network()
    before = {f"net$$${name}": value.detach().clone() for name, value in net.named_parameters()}
    result = run(gated(net), X, strategy=strategy(max_steps=3, fixed=[*before, "locs"]))
    before["locs"] = f64([-1.0, 1.5])
    for name, value in result.params.items():
        assert torch.equal(value, before.get(name, f64(1.0))) == (name in before), name


# Collapse (scikit-learn) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerate", [None, "squarem"])
def test_a_component_on_two_equal_points_is_refused_by_name(accelerate):
    x = f64([0.0, 0.0, 4.1, 4.6, 5.0, 5.3, 5.9, 6.4])
    with pytest.raises(DegenerateError, match=r"'scales' at \[0\].*on_degenerate=") as caught:
        run(free_scales, x, strategy=EM(accelerate=accelerate))
    assert (caught.value.param, caught.value.element) == ("scales", (0,))


def test_data_without_spread_are_refused():
    """scikit-learn: a score of +11.3."""
    for x in (f64([1.0, 1.0]), f64([0.0, 0.0, 5.0, 5.0])):
        with pytest.raises(DegenerateError, match="scales"):
            run(free_scales, x)


# Missing data (hmmlearn, scikit-learn) --------------------------------------------------------------------


def masked(x):
    seen = ~torch.isnan(x)
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


GAPS = torch.cat([X[:3], f64([torch.nan]), X[3:], f64([torch.nan, torch.nan])])
STEPS = [EM, partial(EM, accelerate="squarem"), partial(EM, m_step=GradientMStep())]


@pytest.mark.parametrize("em", STEPS)
def test_missing_rows_under_a_mask_are_as_if_dropped(em):
    found, whole = run(masked, GAPS, strategy=em(tol=0, max_steps=6)), run(mixture, X, strategy=em(tol=0, max_steps=6))
    assert found.objective == pytest.approx(whole.objective, abs=1e-9)
    torch.testing.assert_close(found.params, whole.params, atol=1e-8, rtol=0)


@pytest.mark.parametrize("start", [None, RandomDraws(), KMeans("x")])
def test_missing_rows_do_not_poison_restarts(start):
    best = run(mixture, X, strategy=EM(restarts=4, start=start, tol=1e-6), seed=2)
    found = run(masked, GAPS, strategy=EM(restarts=4, start=start, tol=1e-6), seed=2)
    assert all(torch.isfinite(v).all() for v in found.params.values())
    assert found.objective == pytest.approx(best.objective, abs=1e-4)


@every_em
def test_bare_nan_is_refused(em):
    with pytest.raises(ModelError, match=r"'x' observes NaN.*poutine\.mask"):
        run(mixture, GAPS, strategy=em())


# Whose objective it is (scikit-learn, ssm) ----------------------------------------------------------------


@pytest.mark.parametrize("strategy", [*EM_VARIANTS.values(), FAST], ids=[*EM_VARIANTS, "svi"])
def test_the_objective_is_that_of_the_parameters(strategy):
    """Neither one step late nor that of the last restart; at a cap, where a late one would show."""
    result = run(mixture, X, strategy=strategy(max_steps=6), seed=4)
    assert result.objective == pytest.approx(evidence(result.params), abs=1e-10)
    assert result.log_evidence == result.objective
    assert run(mixture, X, strategy=EM(max_steps=0), init=result).objective == pytest.approx(
        result.objective, abs=1e-10
    )


@pytest.mark.parametrize("accelerate", [None, "squarem"])
@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_that_of_the_best_restart(seed, accelerate):
    """Poissons far apart: some starts end in poor maxima."""
    x = torch.cat([torch.full((20,), v, dtype=torch.float64) for v in (1.0, 2.0, 30.0, 33.0, 90.0, 95.0)])

    def model(x):
        weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=simplex)
        rates = pyro.param("rates", f64([1.0, 1.5, 60.0]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)

    strategy = EM(restarts=6, start=RandomDraws(2.0), accelerate=accelerate)
    result = run(model, x, strategy=strategy, seed=seed)
    history, rates = result.history, result.params["rates"]
    exact = (dist.Poisson(rates).log_prob(x.unsqueeze(-1)) + result.params["weights"].log()).logsumexp(-1).sum()
    assert result.objective == pytest.approx(exact.item(), abs=1e-9)
    assert result.objective == pytest.approx(history.objective.max(), abs=1e-9)
    ends = history.groupby("restart").objective.last()
    assert len(ends) == 6 and ends.max() - ends.min() > 1.0
    assert ends[history.restart.iloc[-1]] == pytest.approx(ends.max(), abs=1e-6)


# Order and labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("em", STEPS)
def test_the_order_of_rows_changes_nothing(em):
    order = torch.randperm(len(X))
    one, other = run(mixture, X, strategy=em()), run(mixture, X[order], strategy=em())
    assert other.objective == pytest.approx(one.objective, abs=1e-8)
    torch.testing.assert_close(other.params, one.params, atol=1e-5, rtol=0)
    torch.testing.assert_close(other.posterior()["z"].probs, one.posterior()["z"].probs[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("em", STEPS)
def test_the_names_of_components_change_nothing(em):
    init = {"weights": f64([0.3, 0.7]), "locs": f64([-0.5, 2.0])}
    swapped = {name: value.flip(0) for name, value in init.items()}
    strategy = em(tol=0, max_steps=6)
    one, other = run(mixture, X, strategy=strategy, init=init), run(mixture, X, strategy=strategy, init=swapped)
    assert other.objective == pytest.approx(one.objective, abs=1e-8)
    for name in init:
        torch.testing.assert_close(other.params[name], one.params[name].flip(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(other.posterior()["z"].probs, one.posterior()["z"].probs.flip(-1), atol=1e-6, rtol=0)


# One return type (ssm) ------------------------------------------------------------------------------------


def test_one_return_type():
    strategies = [em(max_steps=2) for em in EM_VARIANTS.values()] + [FAST(max_steps=2)]
    results = [run(mixture, X, strategy=s) for s in strategies]
    results += [run(gated(network()), X, strategy=s) for s in (EM(max_steps=2), FAST(max_steps=2))]
    for result in results:
        assert type(result) is FitResult
        assert list(result.history.columns) == list(results[0].history.columns)
        assert isinstance(result.objective, float) and isinstance(result.log_evidence, float)
        assert result.objective_kind in ("log_evidence", "log_joint", "elbo")
        assert isinstance(result.n_steps, int) and isinstance(result.status, Status)
        assert all(isinstance(v, torch.Tensor) and not v.requires_grad for v in result.params.values())
        assert result.posterior()["z"].probs.shape == (len(X), 2)
        assert result.predict(num_samples=2, seed=0)["x"].shape == (2, len(X))
