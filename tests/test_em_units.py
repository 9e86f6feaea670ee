"""What goes to the gradient is climbed in units in which the objective curves alike, whatever those of the model."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

from pyro_em import EM, fit
from pyro_em.em.units import LARGEST, are_uneven, flat, look

f64 = partial(torch.tensor, dtype=torch.float64)
CURVED = f64([[4.0, 1.0, 0.0], [1.0, 9.0, 2.0], [0.0, 2.0, 2.0]])


def slope_of(hessian: Tensor, leaves: list[Tensor], peak: Tensor) -> Callable[[], Tensor]:
    return lambda: -hessian @ (flat(leaves) - peak)


def own(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1e4, 1.0, 30.0), (1.0, 1e6, 1e3)], ids=str)
def test_in_units_a_quadratic_is_round(scales: tuple[float, ...]) -> None:
    by = torch.diag(f64(scales))
    hessian, leaves = by @ CURVED @ by, [f64([0.3, -2.0]), f64([[0.5]])]
    before = [leaf.clone() for leaf in leaves]
    units = look(slope_of(hessian, leaves, f64([1.0, -1.0, 0.0]) / f64(scales)), leaves, own(3))
    torch.testing.assert_close(units.T @ (hessian + own(3) / LARGEST**2) @ units, own(3), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))


def test_a_second_look_sees_what_the_first_could_not_trust() -> None:
    ages = torch.linspace(20.0, 70.0, 100, dtype=torch.float64)
    design = torch.stack([ages**k for k in range(4)], -1)
    hessian, leaves = 10 * design.T @ design, [torch.zeros(4, dtype=torch.float64)]
    slope = slope_of(hessian, leaves, f64([1.0, 0.1, 1e-3, 1e-5]))
    first = look(slope, leaves, own(4))
    second = look(slope, leaves, look(slope, leaves, first))
    conditions = [float(torch.linalg.cond(u.T @ hessian @ u)) for u in (own(4), first, second)]
    assert conditions[0] > 1e13 and conditions[1] > 10 and conditions[2] < 3


def test_errors_in_the_last_digits_of_slopes_do_not_change_units() -> None:
    found = []
    for seed in range(4):
        leaves, generator = [f64([0.3, -2.0, 0.5])], torch.Generator().manual_seed(seed)
        exact = slope_of(CURVED, leaves, f64([1.0, -1.0, 0.0]))

        def slope(exact: Callable[[], Tensor] = exact, generator: torch.Generator = generator) -> Tensor:
            return exact() + 1e-14 * torch.randn(3, generator=generator, dtype=torch.float64)

        found.append(look(slope, leaves, look(slope, leaves, own(3))))
    assert all(torch.equal(units, found[0]) for units in found)


def test_a_slope_that_is_nowhere_or_flat_leaves_units_within_bounds() -> None:
    leaves = [f64([0.5, 0.5])]
    assert torch.equal(look(lambda: None, leaves, own(2)), own(2))
    flat_ones = look(lambda: torch.zeros(2, dtype=torch.float64), leaves, look(lambda: f64([1.0, 0.0]), leaves, own(2)))
    assert float(torch.linalg.matrix_norm(flat_ones, 2)) <= LARGEST * (1 + 1e-9)


def test_steps_are_kept_where_the_slope_is_a_line() -> None:
    """Beyond a millionth the logarithm has no slope at all, or one that bends."""
    leaves = [f64([1e-6, 1.0])]

    def slope() -> Tensor | None:
        x = leaves[0]
        return None if bool((x <= 0).any()) else 2.0 / x - 1.0

    units = look(slope, leaves, own(2))
    assert units.diagonal().tolist() == pytest.approx([1e-6 / 2**0.5, 2**-0.5], rel=0.02)


@pytest.mark.parametrize(("sizes", "uneven"), [((1.0, 0.02), False), ((1.0, 0.005), True), ((90.0, 0.5), False)])
def test_steps_far_apart_are_told_but_not_those_of_a_flat_weight(sizes: tuple[float, ...], uneven: bool) -> None:
    assert are_uneven(torch.diag(f64(sizes))) is uneven


def people(power: int, groups: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Ages to some power as they are and standardised, and a positive number of each."""
    generator = torch.Generator().manual_seed(0)
    ages = 20 + 50 * torch.rand(300, generator=generator, dtype=torch.float64)
    first = torch.rand(300, generator=generator, dtype=torch.float64) < (0.5 if groups else 0.0)
    line = 0.5 + 0.03 * (ages - 45) - 0.001 * (ages - 45) ** 2 + 1.5 * first
    with torch.random.fork_rng():
        torch.manual_seed(1)
        y = dist.Gamma(3.0, 3.0 * torch.exp(-line)).sample()
    raw, centred = (torch.stack([x**k for k in range(power + 1)], -1) for x in (ages, (ages - 45) / 15))
    return raw, centred, y


def costs(x: Tensor, y: Tensor) -> None:
    """A Gamma whose mean is the exponential of a line: its rate is a product of parameters, which is opaque."""
    line = x @ pyro.param("line", x.new_zeros(x.shape[-1]))
    shape = pyro.param("shape", x.new_tensor(1.0), constraint=constraints.positive)
    with pyro.plate("people", len(y)):
        pyro.sample("y", dist.Gamma(shape, shape * torch.exp(-line)), obs=y)


def groups(x: Tensor, y: Tensor) -> None:
    """Two of them, apart in their levels."""
    weights = pyro.param("weights", x.new_tensor([0.5, 0.5]), constraint=constraints.simplex)
    start = torch.zeros(2, x.shape[-1], dtype=x.dtype)
    start[1, 0] = 1.0
    lines = x @ pyro.param("lines", start).T
    shape = pyro.param("shape", x.new_ones(2), constraint=constraints.positive)
    with pyro.plate("people", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        mean = torch.exp(Vindex(lines)[torch.arange(len(y)), z])
        pyro.sample("y", dist.Gamma(shape[z], shape[z] / mean), obs=y)


@pytest.mark.parametrize("power", [2, 3])
@pytest.mark.parametrize("model", [costs, groups])
def test_raw_covariates_reach_the_maximum_of_standardised_ones(model: Callable[..., None], power: int) -> None:
    raw, centred, y = people(power, model is groups)
    found, best = (fit(model, x, y, strategy=EM(), progress=False) for x in (raw, centred))
    assert found.objective == pytest.approx(best.objective, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("factors", [(1e-2, 1e4), (1e3, 1e-1), (1e5, 1e3)], ids=str)
def test_the_units_of_parameters_do_not_matter(factors: tuple[float, float], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator).to(dtype)
    p = torch.sigmoid(torch.tanh(2 * x[:, 0]) * 2 - x[:, 1])
    y = (torch.rand(200, generator=generator).to(dtype) < p).to(dtype)

    def model(x: Tensor, y: Tensor, by: Tensor) -> None:
        slopes, level = pyro.param("slopes", 0.1 / by), pyro.param("level", by.new_tensor(0.0))
        steep = slopes * by
        logits = torch.tanh(level + steep[0] * x[:, 0]) * 2 + torch.sinh(steep[1] * x[:, 1])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    by = torch.tensor(factors, dtype=dtype)
    found, plain = (fit(model, x, y, b, strategy=EM(), progress=False) for b in (by, torch.ones_like(by)))
    exact = dtype == torch.float64
    assert found.objective == pytest.approx(plain.objective, abs=1e-6 if exact else 1e-4)
    reached, expected = found.params["slopes"] * by, plain.params["slopes"]
    torch.testing.assert_close(reached, expected, rtol=1e-3 if exact else 1e-2, atol=1e-3)
