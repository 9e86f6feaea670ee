"""Selections that a closed form must take care with: coupled, bounded, unused, or equal where they start."""

import pyro
import pyro.distributions as dist
from pyro.distributions.constraints import interval, positive
from torch import Tensor

from arguments.base import SELECTED, Made, case, either, f64, selection, unused
from arguments.parts import GROUPS, X, locs, mixture, scale

PLAIN = {"weights": SELECTED, "locs": SELECTED, "scale": SELECTED}


@case(
    {"weights": SELECTED, "loc": selection(exact=None, same=False), "scales": selection(exact=None, same=False)},
    maximal=False,
)
def loc_shared() -> Made:
    """The best location depends on both scales: no joint closed form, only one in turn."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        scales = pyro.param("scales", f64([0.6, 2.1]), constraint=positive)
        return dist.Normal(pyro.param("loc", f64(0.3)), scales[z])

    return mixture(emission)


@case({"weights": SELECTED, "locs": SELECTED})
def scale_constant_at_a_start() -> Made:
    """The constant scale is what a location starts from: equal values are no sign of a selection."""
    return mixture(lambda z: dist.Normal(locs()[z], 1.4))


@case(
    {"weights": SELECTED, "locs": selection(exact=None, same=False), "scales": selection(exact=None, same=False)},
    maximal=False,
)
def by_sensor() -> Made:
    """Scales differ within a component, so that the locations are weighted means of unequal weights."""

    def emission(z: Tensor, sensor: Tensor) -> dist.TorchDistribution:
        scales = pyro.param("scales", f64([0.7, 1.0, 1.3]), constraint=positive)
        return dist.Normal(locs()[z], scales[sensor])

    return mixture(emission, X, GROUPS)


@case({**PLAIN, "spare": unused()})
def never_reached() -> Made:
    """The third row of the table and a parameter of its own are not used: both must stay as they are."""

    def emission(z: Tensor, group: Tensor) -> dist.TorchDistribution:
        pyro.param("spare", f64([0.3, 0.8]))
        table = pyro.param("locs", f64([[-1.1, 1.4], [-0.7, 1.9], [5.5, 7.7]]))
        return dist.Normal(table[group % 2, z], scale())

    return mixture(emission, X, GROUPS)


@case({"weights": SELECTED, "locs": SELECTED, "scales": SELECTED})
def equal_starts() -> Made:
    """Elements and parameters that start equal are not the same."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        locs = pyro.param("locs", f64([0.6, 1.2]))
        return dist.Normal(locs[z], pyro.param("scales", f64([1.2, 1.2]), constraint=positive)[z])

    return mixture(emission)


READ = either("selection", "linked", "opaque", links=("exp",))


@case({"weights": SELECTED, "locs": READ, "scale": READ})
def read_from_the_store() -> Made:
    """Declared in one place, and read in another behind the back of Pyro's handlers: any verdict, the same step."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        locs(), scale()
        store = pyro.get_param_store()
        return dist.Normal(store["locs"][z], store["scale"])

    return mixture(emission)


@case({"weights": SELECTED, "locs": SELECTED})
def locs_within_bounds() -> Made:
    """A constraint that the closed form respects by itself, since the data do."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.param("locs", f64([2.6, 5.3]), constraint=interval(0.5, 9.0))[z], f64(0.9))

    return mixture(emission, X + 3.4)


@case({"weights": SELECTED, "locs": selection(exact=None, same=False)}, maximal=False)
def locs_beyond_a_bound() -> Made:
    """The closed form would leave the constraint: Q has its maximum on the edge, where no parameter may be."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(pyro.param("locs", f64([-0.6, 0.9]), constraint=interval(-1.0, 1.3))[z], f64(0.9))

    return mixture(emission)
