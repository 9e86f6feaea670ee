"""A weight of two is a datum that is there twice: in the parameters, the objective and the log evidence."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import positive, simplex, unit_interval
from shared.rows import bayesian, chains, counts, f64, gated, mixture, regimes, regressions

from pyro_em import EM, SVI, GradientMStep, KMeans, RandomDraws, RandomResponsibilities, fit

X = f64([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4, 2.6, 3.1])
Y = f64([0.3, -0.9, 1.4, 0.8, -1.1, 2.3, 0.1, 1.7, -0.6, 2.9])
TIMES = torch.tensor([1, 2, 1, 1, 3, 1, 2, 1, 1, 2])
WEIGHTS = TIMES.to(torch.float64)

SEQUENCES = torch.stack([X, Y, X.flip(0) - Y], -1)
CASES = {
    "mixture": (mixture, (X,)),
    "regressions": (regressions, (X, Y)),
    "chains": (chains, (SEQUENCES,)),
    "regimes": (regimes, (X,)),
    "network": (gated, (X,)),
    "priors": (bayesian, (X,)),
    "counts": (counts, ((X + 3).round(),)),
}
each_case = pytest.mark.parametrize(("model", "data"), CASES.values(), ids=CASES)
INIT = {"locs": f64([-1.0, 1.5])}  # the priors' medians are equal


def run(model, *args, weights=None, init=None, strategy=None, seed=0, **options):
    init = INIT if model is bayesian and init is None else init
    strategy = strategy or EM(**options)
    return fit(model, *args, strategy=strategy, weights=weights, init=init, seed=seed, progress=False)


def agree(one, other, atol=1e-10):
    torch.testing.assert_close(one.params, other.params, atol=atol, rtol=0)
    assert one.objective == pytest.approx(other.objective, abs=atol)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=atol)


def times(data, repeats=TIMES):
    return tuple(d.repeat_interleave(repeats, 0) for d in data)


# Twice is a weight of two ---------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("steps", [0, 4])
def test_a_weight_is_a_repeated_row(model, data, steps):
    found = run(model, *data, weights=WEIGHTS, tol=0, max_steps=steps)
    agree(found, run(model, *times(data), tol=0, max_steps=steps))


@each_case
def test_a_weight_of_two_for_one_row(model, data):
    twice = torch.ones(10)
    twice[3] = 2.0
    found = run(model, *data, weights=twice, tol=0, max_steps=3)
    rows = torch.cat([torch.arange(10), torch.tensor([3])])
    agree(found, run(model, *(d[rows] for d in data), tol=0, max_steps=3))


@pytest.mark.parametrize("model", ["mixture", "chains", "regimes"])
def test_a_weight_is_a_repeated_row_for_gradients(model):
    model, data = CASES[model]
    options = {"tol": 0, "max_steps": 3, "m_step": GradientMStep()}
    agree(run(model, *data, weights=WEIGHTS, **options), run(model, *times(data), **options))


def test_a_weight_is_a_repeated_row_under_acceleration():
    options = {"tol": 0, "max_steps": 6, "accelerate": "squarem"}
    agree(run(mixture, X, weights=WEIGHTS, **options), run(mixture, *times((X,)), **options), atol=1e-9)


@each_case
def test_a_weight_of_nothing_is_a_row_that_is_not_there(model, data):
    keep = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    found = run(model, *data, weights=keep.to(torch.float64), tol=0, max_steps=3)
    agree(found, run(model, *times(data, keep), tol=0, max_steps=3))


@each_case
def test_weights_of_one_change_nothing(model, data):
    agree(run(model, *data, weights=torch.ones(10), tol=0, max_steps=3), run(model, *data, tol=0, max_steps=3), 1e-9)


def test_weights_in_proportion_have_the_same_maximum():
    """A fraction of a datum is a fraction of its nats."""
    whole, third = (run(mixture, X, weights=WEIGHTS * c, tol=0, max_steps=5) for c in (1.0, 1 / 3))
    torch.testing.assert_close(third.params, whole.params, atol=1e-10, rtol=0)
    assert 3 * third.objective == pytest.approx(whole.objective, abs=1e-10)


def test_the_objective_is_the_weighted_sum():
    result = run(mixture, X, weights=WEIGHTS, max_steps=3, tol=0)
    params = result.params
    by_state = dist.Normal(params["locs"], params["scales"]).log_prob(X.unsqueeze(-1)) + params["weights"].log()
    assert result.objective == pytest.approx((WEIGHTS * by_state.logsumexp(-1)).sum().item(), abs=1e-10)
    assert result.history.objective.diff().dropna().min() > -1e-9
    torch.testing.assert_close(result.posterior()["z"].probs, by_state.softmax(-1), atol=1e-9, rtol=0)


def test_no_step_lowers_a_weighted_objective():
    for model, data in CASES.values():
        result = run(model, *data, weights=0.3 + WEIGHTS.sqrt(), max_steps=15, tol=0)
        assert result.history.objective.diff().dropna().min() > -1e-8


# By name, by scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_type", [torch.float64, torch.float32, torch.int64])
def test_weights_by_the_name_of_the_plate(as_type):
    one = run(mixture, X, weights=WEIGHTS, tol=0, max_steps=3)
    agree(run(mixture, X, weights={"data": WEIGHTS.to(as_type)}, tol=0, max_steps=3), one, atol=0)
    agree(run(mixture, X, weights=TIMES, tol=0, max_steps=3), one, atol=0)


def test_weights_of_an_inner_plate():
    """Groups with a class each: rows of the inner plate count so often in every group."""
    x = torch.stack([X[:6], Y[:6], X[:6] + Y[:6]])

    def model(x):
        weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.3, 1.5]))
        with pyro.plate("groups", len(x), dim=-2):
            z = pyro.sample("z", dist.Categorical(weights))
            with pyro.plate("members", x.shape[1], dim=-1):
                pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    inner, outer = TIMES[:6], torch.tensor([2, 1, 3])
    found = run(model, x, weights={"members": inner.to(torch.float64)}, tol=0, max_steps=3)
    agree(found, run(model, x.repeat_interleave(inner, 1), tol=0, max_steps=3))
    found = run(model, x, weights=outer.to(torch.float64), tol=0, max_steps=3)
    agree(found, run(model, x.repeat_interleave(outer, 0), tol=0, max_steps=3))
    both = {"groups": outer.to(torch.float64), "members": inner.to(torch.float64)}
    repeated = x.repeat_interleave(inner, 1).repeat_interleave(outer, 0)
    agree(run(model, x, weights=both, tol=0, max_steps=3), run(model, repeated, tol=0, max_steps=3))


@pytest.mark.parametrize("name", ["mixture", "regressions", "chains", "regimes"])
def test_a_scale_for_each_datum_is_a_weight(name):
    """The same thing, said inside the model."""
    model, data = CASES[name]

    def scaled(*data):
        with poutine.scale(scale=WEIGHTS):
            model(*data)

    def inside(x):
        p = pyro.param("p", f64(0.3), constraint=unit_interval)
        regime = pyro.sample("regime", dist.Bernoulli(p))
        table = pyro.param("table", f64([[0.3, 0.7], [0.6, 0.4]]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.0, 1.5]))
        with pyro.plate("data", len(x)), poutine.scale(scale=WEIGHTS):
            z = pyro.sample("z", dist.Categorical(table[regime.long()]))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    found = run(inside if name == "regimes" else scaled, *data, tol=0, max_steps=4)
    agree(found, run(model, *data, weights=WEIGHTS, tol=0, max_steps=4))
    agree(found, run(model, *times(data), tol=0, max_steps=4))


def test_a_scale_and_weights_multiply():
    def scaled(x):
        with poutine.scale(scale=WEIGHTS):
            mixture(x)

    found = run(scaled, X, weights=WEIGHTS.flip(0), tol=0, max_steps=3)
    agree(found, run(mixture, X, weights=WEIGHTS * WEIGHTS.flip(0), tol=0, max_steps=3))


def test_weights_on_masked_rows():
    """A row that no one sees has no weight, whatever it is given."""
    seen = torch.arange(10) != 4

    def masked(x):
        with poutine.mask(mask=seen):
            mixture(x)

    gap = torch.where(seen, X, torch.nan)
    found = run(masked, gap, weights=WEIGHTS, tol=0, max_steps=3)
    agree(found, run(mixture, X[seen], weights=WEIGHTS[seen], tol=0, max_steps=3), atol=1e-9)


# With the rest of EM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [None, RandomDraws(0.3), RandomResponsibilities(rows=6), KMeans("x")])
def test_weights_and_restarts(start):
    found = run(mixture, X, weights=WEIGHTS, restarts=3, start=start, on_degenerate="floor", max_steps=25)
    assert found.objective == pytest.approx(found.history.objective.max(), abs=1e-8)
    again = run(mixture, X, weights=WEIGHTS, init=found, max_steps=0)
    assert again.objective == pytest.approx(found.objective, abs=1e-9)


def test_weights_and_fixed_parameters():
    found = run(mixture, X, weights=WEIGHTS, fixed="locs", tol=0, max_steps=3)
    assert torch.equal(found.params["locs"], f64([-1.0, 1.5]))
    agree(found, run(mixture, *times((X,)), fixed="locs", tol=0, max_steps=3))


def test_weights_are_left_as_they_are():
    mine = WEIGHTS.clone().requires_grad_(True)
    run(mixture, X, weights=mine, max_steps=2)
    assert torch.equal(mine, WEIGHTS) and mine.requires_grad and mine.grad is None


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [SVI(max_steps=2), SVI(max_steps=2, batch_size=5)])
def test_svi_takes_no_weights(strategy):
    """Accepted and ignored would be worse."""
    with pytest.raises(ValueError, match=r"SVI takes no weights=.*poutine\.scale"):
        run(mixture, X, weights=WEIGHTS, strategy=strategy)
    assert not dict(pyro.get_param_store())


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (WEIGHTS[:4], r"\(4,\)"),
        (WEIGHTS.reshape(2, 5), r"\(2, 5\)"),
        (f64(2.0), r"\(\)"),
        (-WEIGHTS, "not negative"),
        (WEIGHTS * torch.nan, "finite"),
        (WEIGHTS / 0.0, "finite"),
        ({"rows": WEIGHTS}, r"'rows'.*\['data'\]"),
        ({"data": WEIGHTS[:4]}, r"'data' has 10 elements.*\(4,\)"),
    ],
)
def test_weights_that_do_not_fit(weights, match):
    with pytest.raises(ValueError, match=match):
        run(mixture, X, weights=weights)
    assert not dict(pyro.get_param_store())


def test_weights_without_a_plate():
    def model(x):
        loc = pyro.param("loc", f64(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(ValueError, match="weights"):
        run(model, X, weights=WEIGHTS)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("size", [None, 13])
def test_a_row_of_no_weight_may_hold_anything(slope, size):
    """It sets neither the centre of the data nor their unit."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    y += 3.0 * (torch.rand(60, generator=generator) < 0.5) + 0.5 * x
    weights = torch.ones(60, dtype=torch.float64)
    weights[3] = 0.0

    def model(x, y):
        locs = pyro.param("locs", torch.tensor([0.0, 2.5], dtype=torch.float64))
        scales = pyro.param("scales", torch.ones(2, dtype=torch.float64), constraint=positive)
        b = pyro.param("b", torch.tensor(0.1, dtype=torch.float64)) if slope else 0.0
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.4)).long()
            pyro.sample("y", dist.Normal(locs[z] + b * x, scales[z]), obs=y)

    def reached(value):
        data = torch.where(weights > 0, y, value)
        return fit(model, x, data, strategy=EM(tol=1e-8, batch_size=size), weights=weights, progress=False)

    plain = reached(0.0)
    for value in (-99999.0, 1e8):
        found = reached(value)
        assert found.status is plain.status
        assert found.objective == pytest.approx(plain.objective, abs=1e-9)
