"""Components that collapse: refused by name, or held at a floor.

A component on two equal points gains without limit as its spread goes to nothing; what arithmetic then reports is no
fit.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex
from shared.collapse import (
    FLOOR,
    XY,
    X,
    accelerated,
    chain,
    climbs,
    each_model,
    each_shared,
    f64,
    fulls,
    is_finite,
    normals,
    run,
)

from pyro_em import EM, DegenerateError, fit

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


# The data's unit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filling", [-999.0, -99999.0, -1e7, torch.nan])
@pytest.mark.parametrize("policy", ["raise", "floor"])
def test_what_a_mask_hides_sets_no_unit(filling, policy):
    mask, x = torch.arange(len(X)) % 4 != 2, X[2:].repeat(2)
    mask = mask.repeat(2)[: len(x)]
    x = torch.where(mask, x, filling)

    def model(x, slope=False):
        weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
        locs, scales = pyro.param("locs", f64([4.0, 6.0])), pyro.param("scales", f64([1.0, 1.0]), constraint=positive)
        tilt = pyro.param("tilt", f64(0.0)) if slope else 0.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            mean = locs[z] + tilt * torch.linspace(-1, 1, len(x)) if slope else locs[z]
            pyro.sample("x", dist.Normal(mean, scales[z]).mask(mask), obs=x)

    for slope in (False, True):
        options = {"on_degenerate": policy, "max_steps": 5, "tol": 0}
        found = run(partial(model, slope=slope), x, **options)
        wanted = run(partial(model, slope=slope), torch.where(mask, x, 5.0), max_steps=5, tol=0)
        assert found.objective == pytest.approx(wanted.objective, abs=1e-9)


def test_columns_of_different_units_about_one_known_location():
    units = f64([1e-6, 1.0])

    def model(x):
        scales = pyro.param("scales", units.clone(), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scales).to_event(1), obs=x)

    result = run(model, torch.stack([X, X], -1) * units)
    torch.testing.assert_close(result.params["scales"], X.square().mean().sqrt() * units, rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [None, 500, 7])
def test_the_floor_is_set_by_all_batches(size):
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.zeros(60), 4.0 + torch.randn(240, generator=generator, dtype=torch.float64)])
    result = run(normals, x, on_degenerate="floor", batch_size=size, init={"locs": f64([0.0, 4.0])})
    assert climbs(result)
    assert result.params["scales"][0].item() == pytest.approx((FLOOR * x.var(correction=0)).sqrt().item(), rel=1e-3)


@pytest.mark.parametrize("policy", ["raise", "floor"])
def test_what_is_maximised_numerically_is_refused(policy):
    """A prior that is not conjugate leaves a scale without a solution of its own, and without a floor."""

    torch.manual_seed(0)
    x = torch.randn(60, dtype=torch.float64)
    x = torch.cat([x[(x - 1).abs() > 0.1], f64([1.0] * 4)])

    def model(x):
        scales = pyro.sample("scales", dist.HalfNormal(f64([3.0, 3.0])).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)))
            pyro.sample("x", dist.Normal(pyro.param("locs", f64([0.0, 1.0]))[z], scales[z]), obs=x)

    start = {"scales": f64([1.0, 0.01])}
    with pytest.raises(DegenerateError, match="scale of Normal, given by parameter 'scales' at \\[1\\], fell to"):
        fit(model, x, strategy=EM(on_degenerate=policy, max_steps=50), init=start, progress=False)
