"""Components that collapse or run out of data: refused by name, held, dropped or started elsewhere, as asked.

A component on two equal points gains without limit as its spread goes to nothing; what arithmetic then reports is no
fit.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import lower_cholesky, positive, simplex

from pyro_em import EM, DegenerateError, KMeans, fit

f64 = partial(torch.tensor, dtype=torch.float64)
FLOOR = 1e-6  # of the data's variance
X = f64([0.0, 0.0, 4.1, 4.6, 5.0, 5.3, 5.9, 6.4, 6.6, 7.2, 3.1, 4.9])
XY = torch.stack([X, f64([0.0, 0.0, 1.2, -0.7, 0.4, 2.0, 1.1, 0.3, -1.2, 0.8, 0.2, 1.6])], -1)
accelerated = pytest.mark.parametrize("accelerate", [None, "squarem"])


def normals(x, num=2):
    weights = pyro.param("weights", torch.full((num,), 1 / num), constraint=simplex)
    locs = pyro.param("locs", 5.0 * torch.arange(num))
    scales = pyro.param("scales", torch.ones(num), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def shared(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([0.0, 5.0]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def fulls(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([[0.0, 0.0], [5.0, 1.0]]))
    trils = pyro.param("trils", torch.eye(2).repeat(2, 1, 1), constraint=lower_cholesky)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=trils[z]), obs=x)


def shared_full(x):
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([[0.0, 0.0], [5.0, 1.0]]))
    tril = pyro.param("tril", torch.eye(2), constraint=lower_cholesky)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=tril), obs=x)


def chain(x):
    """A hidden Markov model that visits its first state at two equal points."""
    init = pyro.param("init", f64([0.5, 0.5]), constraint=simplex)
    trans = pyro.param("trans", f64([[0.5, 0.5], [0.5, 0.5]]), constraint=simplex)
    locs = pyro.param("locs", f64([0.0, 5.0]))
    scales = pyro.param("scales", f64([1.0, 1.0]), constraint=positive)
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], scales[z]), obs=x[t])


MODELS = {"normals": (normals, X, "scales"), "fulls": (fulls, XY, "trils"), "chain": (chain, X[:7], "scales")}
each_model = pytest.mark.parametrize(("model", "x", "param"), MODELS.values(), ids=MODELS)
# All data lie on as many points as there are components, so that what all share has nothing left to explain.
SHARED = {
    "scale": (shared, f64([0.0, 0.0, 0.0, 5.0, 5.0]), "scale"),
    "tril": (shared_full, f64([[0.0, 0.0], [0.0, 0.0], [5.0, 1.0], [5.0, 1.0], [5.0, 1.0]]), "tril"),
}
each_shared = pytest.mark.parametrize(("model", "x", "param"), SHARED.values(), ids=SHARED)


def run(model, x, init=None, seed=0, **options):
    return fit(model, x, strategy=EM(**options), init=init, seed=seed, progress=False)


def is_finite(result):
    return all(torch.isfinite(v).all() for v in result.params.values())


def climbs(result):
    gains = result.history.objective.diff().dropna()
    return gains.min() > -1e-9 * (1 + result.history.objective.abs().max())


# Raise ----------------------------------------------------------------------------------------------------


@accelerated
@each_model
def test_raise_names_parameter_element_and_value(model, x, param, accelerate):
    with pytest.raises(DegenerateError, match=rf"'{param}' at \[0.*on_degenerate=\"floor\"") as caught:
        run(model, x, accelerate=accelerate)
    error = caught.value
    assert error.param == param and error.element[0] == 0
    assert isinstance(error.element, tuple) and len(error.element) == (3 if param == "trils" else 1)
    assert not error.value > 1e-4  # nothing, or not a number
    assert not dict(pyro.get_param_store())


@pytest.mark.parametrize("last", [True, False])
def test_raise_names_the_component_that_did(last):
    init = {"locs": f64([5.0, 0.0, 6.5] if not last else [5.0, 6.5, 0.0])}
    with pytest.raises(DegenerateError) as caught:
        run(partial(normals, num=3), X, init=init)
    assert caught.value.element == ((2,) if last else (1,))


@each_shared
def test_raise_on_what_all_share(model, x, param):
    with pytest.raises(DegenerateError, match=f"'{param}'") as caught:
        run(model, x)
    assert caught.value.param == param


def test_points_on_a_line_collapse_a_covariance():
    """Three distinct points, one direction without spread."""
    xy = torch.cat([f64([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]), XY[2:] + f64([5.0, -9.0])])
    init = {"locs": f64([[0.5, 0.5], [10.0, -8.0]])}
    with pytest.raises(DegenerateError, match=r"'trils' at \[0, 1, 1\]|'trils' at \[0"):
        run(fulls, xy, init=init)
    result = run(fulls, xy, init=init, on_degenerate="floor", max_steps=100)
    assert is_finite(result) and climbs(result)


# Floor ----------------------------------------------------------------------------------------------------


@accelerated
@each_model
def test_floor_holds_and_climbs(model, x, param, accelerate):
    result = run(model, x, on_degenerate="floor", accelerate=accelerate, max_steps=100)
    assert result.converged and is_finite(result) and climbs(result)
    held = result.params[param][0]
    variance = x.var(0, correction=0)
    if param == "scales":
        assert held.item() == pytest.approx((FLOOR * variance).sqrt().item(), rel=1e-3)
    else:
        unit = variance.sqrt()
        levels = torch.linalg.eigvalsh(held @ held.mT / unit / unit.unsqueeze(-1))
        torch.testing.assert_close(levels, torch.full((2,), FLOOR), rtol=1e-3, atol=0)
    latent = "z_0" if model is chain else "z"
    assert torch.isfinite(result.posterior()[latent].probs).all()


@accelerated
@each_shared
def test_floor_on_what_all_share(model, x, param, accelerate):
    result = run(model, x, on_degenerate="floor", accelerate=accelerate, max_steps=60)
    assert is_finite(result) and climbs(result)


@accelerated
@pytest.mark.parametrize("width", [1e-2, 1e-5, 1e-7])
def test_floor_from_a_start_that_is_narrower(width, accelerate):
    """What starts below the floor is no reason to say that the model is random."""
    init = {"scales": f64([width, 1.0])}
    result = run(normals, X, init=init, on_degenerate="floor", accelerate=accelerate, max_steps=12)
    assert is_finite(result) and result.params["scales"][0] > 1e-4


def test_floor_leaves_a_good_fit_alone():
    x = X[2:]
    init = {"locs": f64([4.0, 6.0])}
    plain, held = run(normals, x, init=init, tol=1e-2), run(normals, x, init=init, tol=1e-2, on_degenerate="floor")
    torch.testing.assert_close(held.params, plain.params, atol=0, rtol=0)


def test_floor_with_data_of_any_unit():
    """A floor in the data's own unit: kilometres or millimetres, the same fit."""

    def in_unit(unit):
        init = {"locs": unit * f64([0.0, 5.0]), "scales": unit * f64([1.0, 1.0])}
        return run(normals, unit * X, init=init, tol=0, max_steps=40, on_degenerate="floor")

    small, large = in_unit(1e-3), in_unit(1e6)
    torch.testing.assert_close(small.params["scales"] * 1e9, large.params["scales"], rtol=1e-5, atol=0)
    torch.testing.assert_close(small.params["weights"], large.params["weights"], rtol=1e-5, atol=1e-9)


def test_floor_on_data_without_spread():
    """No unit to measure by: refused, or held at something finite."""
    try:
        result = run(normals, f64([1.0, 1.0]), on_degenerate="floor")
    except DegenerateError as error:
        assert error.param == "scales"
    else:
        assert is_finite(result)


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


# Narrow, not collapsed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1e-2, 1e-3])
def test_a_narrow_component_is_no_collapse(width):
    """Thirty distinct data of a spread well above the floor: a fit, whose objective has all its digits."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, generator=generator, dtype=torch.float64)
    x = torch.cat([width * noise[:30], 5.0 + noise[30:]])
    result = run(normals, x, tol=0, max_steps=40)
    params = result.params
    by_state = dist.Normal(params["locs"], params["scales"]).log_prob(x.unsqueeze(-1)) + params["weights"].log()
    assert climbs(result)
    assert result.objective == pytest.approx(by_state.logsumexp(-1).sum().item(), abs=1e-8)
    assert params["scales"][0].item() == pytest.approx(width * noise[:30].std(correction=0).item(), rel=1e-3)


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
