"""Components that collapse under the gradient are refused by name, as those in closed form are."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex
from shared.collapse import MODELS, X, accelerated, f64, is_finite, normals, run, shared
from untouched import refused

from pyro_em import EM, DegenerateError, GradientMStep, fit

GRADIENT = GradientMStep()
generator = torch.Generator().manual_seed(0)
CLUSTERS = torch.cat([f64([0.0, 0.0]), torch.randn(40, generator=generator, dtype=torch.float64) + 4.0])
CLUSTERS[22:] += 6.0
COLLAPSING = {"locs": f64([0.0, 5.0]), "scales": f64([0.01, 3.0])}


def components():
    return dist.Categorical(pyro.param("weights", f64([0.5, 0.5]), constraint=simplex))


def locs():
    return pyro.param("locs", f64([0.0, 5.0]))


def scales():
    return pyro.param("scales", f64([1.0, 1.0]), constraint=positive)


def laplaces(x):
    """A family without an M-step of its own."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", components())
        pyro.sample("x", dist.Laplace(locs()[z], scales()[z]), obs=x)


def pairs(x):
    """One scale for two features of a component."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", components())
        pyro.sample("x", dist.Normal(locs()[z].unsqueeze(-1), scales()[z].unsqueeze(-1)).to_event(1), obs=x)


def clamped(x):
    """Closed forms for the weights alone."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", components())
        pyro.sample("x", dist.Normal(locs()[z], scales().clamp(max=3.0)[z]), obs=x)


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = torch.nn.Linear(2, 1, bias=False).double()
        torch.nn.init.zeros_(self.log_scale.weight)

    def forward(self, z):
        hot = torch.stack([z == 0, z == 1], -1).to(torch.float64)
        return self.log_scale(hot).squeeze(-1).exp()


DECODER = Decoder()


def decoded(x):
    decoder = pyro.module("decoder", DECODER)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", components())
        pyro.sample("x", dist.Normal(locs()[z], decoder(z)), obs=x)


@accelerated
@pytest.mark.parametrize(("model", "x", "param"), [MODELS[n] for n in ("normals", "chain")], ids=["normals", "chain"])
def test_all_by_the_gradient(model, x, param, accelerate):
    with pytest.raises(DegenerateError, match=rf"site 'x.*'{param}' at \[0.*restart") as caught:
        run(model, x, m_step=GRADIENT, accelerate=accelerate)
    error = caught.value
    assert error.param == param and error.element[0] == 0
    assert 0 <= error.value < 1e-4
    assert not dict(pyro.get_param_store())


def test_what_all_share():
    with pytest.raises(DegenerateError, match="'scale'"):
        run(shared, f64([0.0, 0.0, 0.0, 5.0, 5.0]), m_step=GRADIENT)


@pytest.mark.parametrize(
    ("model", "x", "param", "element"),
    [
        (laplaces, X, "scales", (0,)),
        (clamped, X, "scales", (0,)),
        (pairs, torch.stack([X, X], -1), "scales", (0,)),
        (decoded, X, "decoder$$$log_scale.weight", (0, 0)),
    ],
    ids=["laplaces", "clamped", "pairs", "decoded"],
)
@pytest.mark.parametrize("size", [None, 1, 2, 5])
def test_beside_closed_forms(model, x, param, element, size):
    with pytest.raises(DegenerateError) as caught:
        run(model, x, batch_size=size, init={"scales": f64([0.1, 1.0])} if param == "scales" else None)
    assert (caught.value.param, caught.value.element) == (param, element)


def test_two_states_and_two_data():
    """The likelihood is unbounded from everywhere, and the end is no splendid fit."""

    def model(x):
        locs, scales = pyro.param("locs", f64([-1.1, 1.2])), pyro.param("scales", f64([0.5, 0.7]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(f64([0.5, 0.5])))
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)

    for m_step in (None, GRADIENT):
        with refused(DegenerateError, "'scales' at \\[.\\].*on_degenerate"):
            fit(model, f64([-1.0, 1.0]), strategy=EM(max_steps=60, m_step=m_step), progress=False)


@pytest.mark.parametrize("policy", ["floor", "drop"])
def test_policies_that_need_a_closed_form_are_refused(policy):
    with pytest.raises(DegenerateError, match="closed form"):
        run(laplaces, CLUSTERS, COLLAPSING, on_degenerate=policy)


def test_another_start():
    result = run(laplaces, CLUSTERS, COLLAPSING, on_degenerate="restart", max_steps=50)
    assert is_finite(result) and result.params["scales"].min() > 1e-2
    assert result.history.restart.nunique() > 1  # the first start collapses


def test_of_several_starts_those_that_collapse_are_out():
    result = run(normals, CLUSTERS, COLLAPSING, m_step=GRADIENT, restarts=4, max_steps=50)
    assert is_finite(result) and result.params["scales"].min() > 1e-2
    assert sorted(result.history.restart.unique()) == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_narrow_scale_of_the_model_is_no_collapse(dtype):
    """A constant is as narrow as the user says; and a parameter of another site may be anything."""

    def model(x):
        locs = pyro.param("locs", torch.tensor([0.0, 5.0], dtype=dtype))
        width = pyro.param("width", torch.tensor(1.0, dtype=dtype), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Laplace(locs[z], width), obs=x)
            pyro.sample("y", dist.Normal(x, 1e-9), obs=x)

    assert is_finite(run(model, X.to(dtype), max_steps=20))


def test_units_do_not_matter():
    """A column of ten to the minus nine beside one of ten to the nine is no component that collapsed."""

    def model(x, y):
        small = pyro.param("small", f64(1e-9), constraint=positive)
        large = pyro.param("large", f64(1e9), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Laplace(0.0, small), obs=x)
            pyro.sample("y", dist.Laplace(0.0, large), obs=y)

    result = fit(model, 1e-9 * X, 1e9 * X, strategy=EM(), progress=False)
    assert result.params["small"].item() == pytest.approx(1e-9 * X.abs().mean().item(), rel=1e-4)


def test_a_kink_in_one_parameter_does_not_pass_for_the_end():
    """Where the location of a Laplace sits on a datum no step of all parameters gains, but one of its scale does."""
    x = f64([0.0, 0.0, 0.0, 1.0, 2.0])

    def model(x):
        loc, scale = pyro.param("loc", f64(1e-9)), pyro.param("scale", f64(1e-3), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Laplace(loc, scale), obs=x)

    result = fit(model, x, strategy=EM(tol=1e-8), progress=False)
    assert result.params["loc"].item() == pytest.approx(0.0, abs=1e-6)
    assert result.params["scale"].item() == pytest.approx(0.6, rel=1e-4)  # the mean deviation from the median


def test_a_kink_in_one_element_does_not_pass_for_the_end():
    x = torch.randn(31, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def model(x):
        shift = pyro.param("shift", f64([x[4].atanh() if x[4].abs() < 1 else 0.1, -0.3]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(f64([0.5, 0.5])))
            pyro.sample("x", dist.Laplace(shift[z].tanh(), 1.0), obs=x)

    result = fit(model, x, strategy=EM(tol=1e-6), progress=False)
    for element in (0, 1):
        for step in (-1e-3, 1e-3, -1e-2, 1e-2):
            moved = result.params["shift"].clone()
            moved[element] += step
            there = fit(model, x, strategy=EM(max_steps=0), init={"shift": moved}, progress=False)
            assert there.objective < result.objective + 1e-5


# Who and when ---------------------------------------------------------------------------------------------


def test_a_constant_that_is_narrow_hides_no_collapse():
    def model(x):
        scale = pyro.param("scale", f64(0.1), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x, 1e-9), obs=x)
            z = pyro.sample("z", components())
            known = torch.stack([scale, f64(1.0)])
            pyro.sample("x", dist.Laplace(f64([0.0, 5.0])[z], known[z]), obs=x)

    with pytest.raises(DegenerateError, match="'scale'"):
        run(model, X)


@pytest.mark.parametrize("scale", [0.1, 0.2, 0.3, 0.5])
def test_a_collapse_in_the_last_step_is_seen(scale):
    """Wherever the cap is, a fit that ends has not collapsed."""
    seen = []
    for steps in range(1, 9):
        try:
            result = run(laplaces, X, {"scales": f64([scale, 1.0])}, max_steps=steps)
        except DegenerateError:
            seen.append(steps)
        else:
            assert not seen and result.params["scales"].min() > 1e-6
    assert seen


def test_the_next_best_of_several_starts_goes_on_where_the_best_collapses():
    for seed in range(3):
        result = run(laplaces, X, {"scales": f64([0.1, 1.0])}, restarts=6, seed=seed)
        assert is_finite(result) and result.params["scales"].min() > 1e-2
        assert result.history.groupby("restart").objective.last().max() > result.objective  # of a start that is out


def test_the_unit_is_that_of_the_data_which_count():
    """Large numbers under a mask stand for missing data."""
    mask, filled = torch.arange(len(X)) % 4 != 2, X.clone()
    filled[~mask] = -1e9

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", components())
            with pyro.poutine.mask(mask=mask):
                pyro.sample("x", dist.Laplace(locs()[z], 0.5 + scales()[z].clamp(max=9.0)), obs=x)

    masked, plain = run(model, filled, max_steps=5, tol=0), run(model, X, max_steps=5, tol=0)
    assert masked.objective == pytest.approx(plain.objective, abs=1e-9)


def test_columns_of_different_units_in_a_plate():
    units = f64([1e-9, 1e9])

    def model(x):
        sizes = pyro.param("sizes", f64([1.0, 1.0]), constraint=positive)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("features", 2, dim=-1):
            pyro.sample("x", dist.Laplace(0.0, sizes.clamp(max=1e3) * units), obs=x)

    result = run(model, torch.stack([X, X], -1) * units)
    torch.testing.assert_close(result.params["sizes"], X.abs().mean().expand(2), rtol=1e-3, atol=0)


# Beside closed forms that collapse ------------------------------------------------------------------------


def beside(x):
    """Scales in closed form, and a parameter that is opaque."""
    tilt = pyro.param("tilt", f64(0.1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", components())
        pyro.sample("x", dist.Normal(locs()[z], scales()[z]), obs=x)
        pyro.sample("y", dist.Normal(tilt.sin().abs(), 1.0), obs=0.3 + 0.0 * x)


def test_a_floor_beside_the_gradient():
    result = run(beside, X, on_degenerate="floor")
    assert result.converged and result.params["scales"][0].item() == pytest.approx(
        (1e-6 * X.var(correction=0)).sqrt().item(), rel=1e-3
    )
    assert set(result.explain().owner) == {"closed form", "gradient"}


def test_a_component_is_dropped_beside_the_gradient():
    result = run(beside, X, on_degenerate="drop")
    assert result.converged and result.params["weights"][0] < 1e-6
    assert result.params["scales"][1].item() == pytest.approx(X.std(correction=0).item(), rel=1e-6)


def test_where_no_m_step_gains_the_trial_climb_goes_on():
    """A Laplace location on a datum is a kink of Q, which may be steep where the objective has none: one seed ended at
    the cap, a thousand iterations later.
    """
    result = run(laplaces, X, {"scales": f64([0.1, 1.0])}, restarts=6, seed=11)
    assert result.converged and result.objective == pytest.approx(-25.798, abs=1e-3)
