"""Components that collapse in families without a scale: their concentrations grow together, and without limit."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, real, simplex
from shared.collapse import climbs, f64

from pyro_em import EM, DegenerateError, fit

K, ITERATIONS = 2, 200
SPOTS = 4  # equal data


def _parameters(**starts):
    return {n: pyro.param(n, v, constraint=real if n == "loc" else positive) for n, v in starts.items()}


def gamma(z):
    p = _parameters(shape=f64([2.0, 4e3]), rate=f64([1.0, 1e3]))
    return dist.Gamma(p["shape"][z], p["rate"][z])


def gamma_of_one_rate(z):
    """The shape of the other component would have to follow: nothing collapses."""
    p = _parameters(shape=f64([2.0, 4.0]), rate=f64(1.0))
    return dist.Gamma(p["shape"][z], p["rate"])


def beta(z):
    p = _parameters(one=f64([2.0, 4e3]), zero=f64([2.0, 6e3]))
    return dist.Beta(p["one"][z], p["zero"][z])


def dirichlet(z):
    return dist.Dirichlet(_parameters(level=f64([[2.0, 2.0, 2.0], [2e3, 3e3, 5e3]]))["level"][z])


def von_mises(z):
    p = _parameters(loc=f64([0.0, 1.0]), level=f64([1.0, 1e3]))
    return dist.VonMises(p["loc"][z], p["level"][z])


def spotted(spread, spot, far):
    """Data far enough from the spot that only those on it belong to the second component."""
    x = spread.sample((60,)).to(torch.float64)
    away = (x - spot).abs().reshape(60, -1).amax(1) > far
    return torch.cat([x[away], spot.expand(SPOTS, *spot.shape)])


def data(name):
    torch.manual_seed(0)
    one = f64(1.0)
    return {
        "gamma": lambda: spotted(dist.Gamma(2 * one, one), f64(4.0), 0.1),
        "beta": lambda: spotted(dist.Beta(2 * one, 2 * one), f64(0.4), 0.1),
        "dirichlet": lambda: spotted(dist.Dirichlet(f64([2.0, 2.0, 2.0])), f64([0.2, 0.3, 0.5]), 0.1),
        "von_mises": lambda: spotted(dist.VonMises(0 * one, one), f64(1.0), 0.1),
    }[name]()


CASES = {"gamma": (gamma, "shape"), "beta": (beta, "one"), "dirichlet": (dirichlet, "level")}
CASES |= {"von_mises": (von_mises, "level")}
each_family = pytest.mark.parametrize("name", CASES)


def run(emission, x, **options):
    def model(x):
        weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", emission(z), obs=x)

    return fit(model, x, strategy=EM(**{"max_steps": ITERATIONS, **options}), seed=0, progress=False)


@each_family
@pytest.mark.parametrize("size", [None, 17])
def test_raise_names_parameter_element_and_value(name, size):
    emission, param = CASES[name]
    with pytest.raises(DegenerateError, match="rose to") as caught:
        run(emission, data(name), batch_size=size)
    assert caught.value.param == param and caught.value.element[0] == 1
    assert caught.value.value >= 1e9


@each_family
def test_floor_holds_and_climbs(name):
    emission, param = CASES[name]
    found = run(emission, data(name), on_degenerate="floor")
    level = found.params[param][1]
    assert level.amin() == pytest.approx(1e6, rel=1e-9)
    assert found.converged and climbs(found)
    spot = data(name)[-1]
    if name in ("beta", "dirichlet"):  # the others follow, so that the mean is on the spot
        whole = level if name == "dirichlet" else torch.stack([level, found.params["zero"][1]])
        mean = (whole / whole.sum())[0 if name == "beta" else ...]
        torch.testing.assert_close(mean, spot, rtol=0, atol=1e-6)


@each_family
def test_drop_goes_on_without(name):
    emission, _ = CASES[name]
    found = run(emission, data(name), on_degenerate="drop")
    assert found.converged
    assert found.params["weights"].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


@each_family
def test_restart_begins_elsewhere(name):
    emission, param = CASES[name]
    found = run(emission, data(name), on_degenerate="restart")
    assert found.params[param].max() < 1e6


def test_a_narrow_component_is_no_collapse():
    """Relative standard deviations of one in ten thousand are a maximum like any other, and floors leave it alone."""
    torch.manual_seed(1)
    x = torch.cat([dist.Gamma(f64(2.0), f64(1.0)).sample((60,)), dist.Gamma(f64(1e5), f64(2.5e4)).sample((60,))])
    free, held = (run(gamma, x, on_degenerate=policy) for policy in ("raise", "floor"))
    assert free.converged and 5e4 < float(free.params["shape"][1]) < 2e5
    assert held.objective == pytest.approx(free.objective, abs=1e-9)


def test_a_rare_share_is_no_collapse():
    """One concentration is large because the mean is small: there is nothing wrong with that."""
    torch.manual_seed(2)
    small = dist.Beta(f64(3.0), f64(6e6)).sample((60,))
    x = torch.cat([dist.Beta(f64(2.0), f64(2.0)).sample((60,)), small])

    def emission(z):
        p = _parameters(one=f64([2.0, 2.0]), zero=f64([2.0, 2e6]))
        return dist.Beta(p["one"][z], p["zero"][z])

    for policy in ("raise", "floor"):
        found = run(emission, x, on_degenerate=policy)
        assert found.converged and float(found.params["zero"][1]) > 2e6


def test_what_components_share_does_not_collapse():
    found = run(gamma_of_one_rate, data("gamma"))
    assert found.converged


@pytest.mark.parametrize("policy", ["raise", "floor"])
def test_beside_coefficients(policy):
    """A line through four data: the rate is exp of it, and the shape grows."""
    torch.manual_seed(0)
    t = torch.linspace(0, 1, 40, dtype=torch.float64)
    x = dist.Gamma(f64(2.0), (0.1 * t).exp()).sample()
    away = (x - 1.005).abs() > 0.15
    x = torch.cat([x[away], f64([1.005] * 5)])
    t = torch.cat([t[away], torch.linspace(0, 1, 5, dtype=torch.float64)])

    def model(x, t):
        weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
        level = pyro.param("level", f64([2.0, 3e3]), constraint=positive)
        start, slope = pyro.param("start", f64([0.0, 8.0])), pyro.param("slope", f64([0.1, 0.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Gamma(level[z], (start[z] + slope[z] * t).exp()), obs=x)

    strategy = EM(on_degenerate=policy, max_steps=ITERATIONS)
    if policy == "raise":
        with pytest.raises(
            DegenerateError, match="concentration of Gamma, given by parameter 'level' at \\[1\\], rose"
        ):
            fit(model, x, t, strategy=strategy, progress=False)
        return
    found = fit(model, x, t, strategy=strategy, progress=False)
    assert found.converged and climbs(found)
    assert float(found.params["level"][1]) == pytest.approx(1e6, rel=1e-9)


def test_a_partner_that_is_fixed_is_no_collapse():
    """To hold the other at a ceiling would move the mean."""
    torch.manual_seed(0)
    x = torch.cat([dist.Beta(f64(2.0), f64(2.0)).sample((40,)), dist.Beta(f64(2e6), f64(2e6)).sample((40,))])

    def emission(z):
        return dist.Beta(f64([2.0, 2e6])[z], _parameters(zero=f64([2.0, 2.1e6]))["zero"][z])

    held, free = (run(emission, x, on_degenerate=policy) for policy in ("floor", "raise"))
    assert held.objective == pytest.approx(free.objective, abs=1e-9)


def test_the_ceiling_does_not_depend_on_the_default_dtype():
    torch.set_default_dtype(torch.float32)
    try:
        found = run(gamma, data("gamma"), on_degenerate="floor")
    finally:
        torch.set_default_dtype(torch.float64)
    assert float(found.params["shape"][1]) == pytest.approx(1e6, rel=1e-9)


def test_rounding_is_no_fall():
    """Log-densities of narrow components are differences of large terms, whose errors need not average out."""
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.cat([dist.Gamma(f64(2.0), f64(1.0)).sample((40,)), dist.Gamma(f64(1e6), f64(2.5e5)).sample((20,))])
        found = run(gamma, x, tol=1e-7)
        assert float(found.params["shape"][1]) == pytest.approx(1e6, rel=0.9)
