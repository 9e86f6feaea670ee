"""Arguments that are no selection, no link and no weighted sum, though most of them look like one at some values."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex, unit_interval
from torch import Tensor

from arguments.base import SELECTED, Made, case, either, f64, opaque, selection
from arguments.parts import GROUPS, X, locs, mixture, scale

FREE = {"weights": SELECTED}  # has a closed form whatever the emission does
LOCS = {"weights": SELECTED, "locs": opaque(same=True)}


def _at(loc: Callable[[], Tensor]) -> Made:
    return mixture(lambda z: dist.Normal(loc()[z], f64(0.9)))


def _scaled(scale: Callable[[], Tensor]) -> Made:
    """The locations are constants, so that nothing but the scale is coupled to it."""
    return mixture(lambda z: dist.Normal(f64([-0.8, 1.7])[z], scale()))


@case({**FREE, "a": opaque(), "b": opaque()})
def product_of_two() -> Made:
    """Only the products count: one step finds them, by any ``a``."""
    return _at(lambda: pyro.param("a", f64([-0.8, 1.2])) * pyro.param("b", f64(1.3)))


@case({**FREE, "scale": opaque(same=True)})
def scale_clamped() -> Made:
    """A floor that only a probe near zero can see."""
    return _scaled(lambda: scale().clamp(min=1e-3))


@case({**FREE, "scale": opaque(same=True)})
def scale_floored_by_where() -> Made:
    """The same floor, of which the operations say less."""
    return _scaled(lambda: torch.where(scale() > 1e-3, scale(), 1e-3))


@case({**FREE, "scale": opaque()})
def scale_on_its_floor() -> Made:
    """The floor is above what the data want: nothing pulls at the parameter any more."""
    return _scaled(lambda: pyro.param("scale", f64(1.9), constraint=positive).clamp(min=1.5))


@case({**FREE, "locs": opaque(same=True)})
def locs_capped() -> Made:
    return _at(lambda: locs().clamp(max=2.5))


@case(LOCS)
def locs_rectified() -> Made:
    return mixture(lambda z: dist.Normal(torch.relu(pyro.param("locs", f64([0.4, 2.9])))[z], f64(0.9)), X.abs() * 1.4)


@case(LOCS)
def locs_absolute() -> Made:
    """One of them is negative, and stays so."""
    return mixture(lambda z: dist.Normal(pyro.param("locs", f64([-0.4, 2.9])).abs()[z], f64(0.9)), X.abs() * 1.4)


@case(LOCS)
def locs_by_root_of_square() -> Made:
    """The root of a square is the number itself only where that is positive."""
    start = f64([0.4, -2.9])
    return mixture(lambda z: dist.Normal((pyro.param("locs", start) ** 2).sqrt()[z], f64(0.9)), X.abs() * 1.4)


@case(LOCS)
def one_location_detached() -> Made:
    """The first one is not to be learnt, the second one is."""

    def loc() -> Tensor:
        table = locs()
        return torch.stack([table[0].detach(), table[1]])

    return _at(loc)


@case({**FREE, "scale": opaque(same=True, idle=True), "locs": selection(exact=None)})
def scale_detached() -> Made:
    """It has the parameter's value, and the user has said not to learn it."""
    return mixture(lambda z: dist.Normal(locs()[z], scale().detach()))


@case(LOCS)
def locs_by_where() -> Made:
    def loc() -> Tensor:
        table = locs()
        return torch.where(table > 0, table, 0.3 * table)

    return _at(loc)


@case({**FREE, "low": opaque(same=True, idle=True), "high": opaque(same=True)})
def larger_of_two() -> Made:
    """The smaller one is not heard at all, yet another order would have it the other way."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        low, high = pyro.param("low", f64(-0.3)), pyro.param("high", f64(1.9))
        return dist.Normal(torch.where(z == 1, torch.maximum(low, high), -0.9), f64(0.9))

    return mixture(emission)


@case(LOCS)
def locs_cubed() -> Made:
    return _at(lambda: pyro.param("locs", f64([-0.9, 1.25])) ** 3)


@case({**FREE, "locs": opaque(same=True, idle=True)})
def locs_rounded() -> Made:
    """Flat wherever it has a slope: no gradient moves it, and no closed form may."""
    return _at(lambda: pyro.param("locs", f64([-0.8, 1.9])).round())


@case({**FREE, "shift": opaque(same=True)})
def shift_by_branch() -> Made:
    """Python control flow on a parameter: two pieces, each of which is affine."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        shift = pyro.param("shift", f64(0.7))
        loc = shift * z if shift > 0 else -2.0 * shift * (1 - z)
        return dist.Normal(1.6 * loc - 0.6, f64(0.9))

    return mixture(emission)


@case(LOCS)
def locs_wrapped() -> Made:
    """The identity from zero to seven, and a saw beyond."""
    return mixture(lambda z: dist.Normal(pyro.param("locs", f64([2.6, 5.3])).remainder(7.0)[z], f64(0.9)), X + 3.4)


@case(LOCS)
def locs_sorted() -> Made:
    """A selection whose indices depend on the values."""
    return _at(lambda: pyro.param("locs", f64([1.9, -0.8])).sort().values)


@case({"sticks": opaque(same=True), "locs": SELECTED})
def stick_breaking() -> Made:
    def prior() -> dist.TorchDistribution:
        sticks = pyro.param("sticks", f64([0.5, 0.4]), constraint=unit_interval)
        rest = torch.cat([torch.ones_like(sticks[:1]), (1 - sticks).cumprod(-1)])
        return dist.Categorical(torch.cat([sticks, torch.ones_like(sticks[:1])]) * rest)

    return mixture(lambda z: dist.Normal(pyro.param("locs", f64([-1.1, 0.9, 2.6]))[z], f64(0.8)), prior=prior)


@case({**FREE, "table": opaque()})
def normalised_over_the_wrong_axis() -> Made:
    """Columns sum to one and rows do not: Categorical normalises them once more."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        table = pyro.param("table", f64([[1.9, 0.4, 1.1], [0.5, 2.2, 0.8]]), constraint=positive)
        return dist.Categorical((table / table.sum(0))[z])

    return mixture(emission, GROUPS)


@case({**FREE, "share": opaque(), "left": opaque(), "right": opaque()})
def blended_tables() -> Made:
    """A parameter weighs two others: affine in each, in all of them not."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        share = pyro.param("share", f64(0.3), constraint=unit_interval)
        left = pyro.param("left", f64([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2]]), constraint=simplex)
        right = pyro.param("right", f64([0.2, 0.3, 0.5]), constraint=simplex)
        return dist.Categorical(share * left[z] + (1 - share) * right)

    return mixture(emission, GROUPS)


@case({**FREE, "theta": opaque(same=True)})
def quadratic_curve() -> Made:
    """One number is a coefficient once and squared once."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        theta = pyro.param("theta", f64(1.1))
        return dist.Normal(torch.stack([-0.5 * theta, theta**2])[z], f64(0.9))

    return mixture(emission)


@case({**FREE, "locs": either("selection", "opaque")})
def locs_cast() -> Made:
    """Through single precision and back: a selection to seven digits."""
    return _at(lambda: locs().float().double())


@case(
    {**FREE, "locs": opaque()},
    refusal="has another log-probability when 'z' is enumerated than when it is drawn.*deterministic",
)
def random_in_the_model() -> Made:
    """Random numbers outside ``pyro.sample`` are not the fit's to integrate."""
    return _at(lambda: locs() * (1 + 0.1 * torch.rand(2)))
