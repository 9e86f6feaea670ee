"""Elements of parameters picked in every way that users write, by the latent and by the data."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive, simplex
from pyro.ops.indexing import Index, Vindex
from torch import Tensor
from torch.nn.functional import one_hot

from arguments.base import SELECTED, Made, case, either, f64
from arguments.parts import GROUPS, X, locs, mixture, scale, weights

PLAIN = {"weights": SELECTED, "locs": SELECTED, "scale": SELECTED}
LOCS = {"weights": SELECTED, "locs": SELECTED}


@case(PLAIN)
def indexed() -> Made:
    return mixture(lambda z: dist.Normal(locs()[z], scale()))


@case({"weights": SELECTED, "locs": SELECTED, "scales": SELECTED})
def scale_each() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        scales = pyro.param("scales", f64([0.8, 1.1]), constraint=positive)
        return dist.Normal(locs()[z], scales[z])

    return mixture(emission)


@case(LOCS)
def scale_constant() -> Made:
    return mixture(lambda z: dist.Normal(locs()[z], 1.0))


@case({"weights": SELECTED, "locs": SELECTED, "scale": SELECTED})
def expanded() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        width = pyro.param("scale", f64([1.2]), constraint=positive)
        return dist.Normal(locs().expand(5, 2)[3][z], width.expand(len(X)))

    return mixture(emission)


@case(PLAIN)
def expanded_distribution() -> Made:
    return mixture(lambda z: dist.Normal(locs()[z], scale()).expand([*z.shape[:-1], len(X)]))


@case(PLAIN)
def taken() -> Made:
    return mixture(lambda z: dist.Normal(torch.take(locs(), z), scale()))


@case(PLAIN)
def by_vindex() -> Made:
    return mixture(lambda z: dist.Normal(Vindex(locs())[..., z], scale()))


@case(PLAIN)
def by_index() -> Made:
    return mixture(lambda z: dist.Normal(Index(locs())[z], scale()))


@case({"weights": SELECTED, "locs": either("selection", "affine", exact=True), "scale": SELECTED})
def by_one_hot() -> Made:
    return mixture(lambda z: dist.Normal(one_hot(z, 2).to(X) @ locs(), scale()))


@case({"weights": SELECTED, "low": SELECTED, "high": SELECTED, "scale": SELECTED})
def by_where() -> Made:
    def emission(z: Tensor) -> dist.TorchDistribution:
        low, high = pyro.param("low", f64(-0.7)), pyro.param("high", f64(1.4))
        return dist.Normal(torch.where(z == 1, high, low), scale())

    return mixture(emission)


@case({"first": SELECTED, "second": SELECTED, "locs": SELECTED, "scale": SELECTED})
def two_latents() -> Made:
    def model(x: Tensor) -> None:
        first = pyro.param("first", f64([0.41, 0.59]), constraint=simplex)
        second = pyro.param("second", f64([[0.3, 0.7], [0.65, 0.35]]), constraint=simplex)
        table = pyro.param("locs", f64([[-1.8, -0.2], [0.9, 2.4]]))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(first))
            b = pyro.sample("b", dist.Categorical(second[a]))
            pyro.sample("x", dist.Normal(Vindex(table)[a, b], scale()), obs=x)

    return model, (X,), {}


@case(PLAIN)
def flipped_transposed_reshaped_permuted() -> Made:
    """Six locations for two components in three groups, at home in another order than they are used."""

    def emission(z: Tensor, group: Tensor) -> dist.TorchDistribution:
        table = pyro.param("locs", f64([1.1, -1.4, 1.9, -0.9, 1.3, -0.5]))
        return dist.Normal(table.reshape(3, 2).flip(-1).t().permute(1, 0).contiguous()[group, z], scale())

    return mixture(emission, X, GROUPS)


@case(PLAIN)
def by_group() -> Made:
    def emission(z: Tensor, group: Tensor) -> dist.TorchDistribution:
        table = pyro.param("locs", f64([[-1.1, 1.4], [-0.7, 1.9], [-1.5, 0.8]]))
        return dist.Normal(table[group, z], scale())

    return mixture(emission, X, GROUPS)


@case({"weights": SELECTED, "tables": SELECTED})
def categories_in_another_order() -> Made:
    """One simplex serves both components, for the second one rolled by a place."""

    def emission(z: Tensor) -> dist.TorchDistribution:
        table = pyro.param("tables", f64([0.55, 0.3, 0.15]), constraint=simplex)
        return dist.Categorical(torch.stack([table, table.roll(1)])[z])

    return mixture(emission, GROUPS, prior=lambda: dist.Categorical(weights().flip(0)))
