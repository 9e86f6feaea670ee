"""Chains: tables read by the previous state, parameters per step of time or for all of them."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import simplex, unit_interval
from pyro.ops.indexing import Vindex
from torch import Tensor

from arguments.base import SELECTED, Made, affine, case, f64, opaque, selection
from arguments.parts import SERIES, locs, scale

INIT = f64([0.6, 0.4])
TRANS = f64([[0.8, 0.2], [0.35, 0.65]])
CHAIN = {"init": SELECTED, "trans": SELECTED, "locs": SELECTED, "scale": SELECTED}
State = Tensor | None


def _init() -> Tensor:
    return pyro.param("init", INIT, constraint=simplex)


def _trans() -> Tensor:
    return pyro.param("trans", TRANS, constraint=simplex)


def _chain(
    probs: Callable[[int, State], Tensor], emission: Callable[[int, Tensor, Tensor], dist.TorchDistribution]
) -> Made:
    """Six sequences of four steps; ``probs(t, z)`` of the next state, ``emission(t, z, previous)``."""

    def model(x: Tensor) -> None:
        z, before = None, torch.zeros_like(x[:, 0])
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[-1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(probs(t, z)))
                pyro.sample(f"x_{t}", emission(t, z, before), obs=x[:, t])
                before = x[:, t]

    return model, (SERIES,), {}


def _plain(t: int, z: State) -> Tensor:
    return _init() if z is None else _trans()[z]


def _fixed_width(t: int, z: Tensor, _: Tensor) -> dist.TorchDistribution:
    return dist.Normal(locs()[z], f64(0.9))


@case(CHAIN)
def chain() -> Made:
    return _chain(_plain, lambda t, z, _: dist.Normal(locs()[z], scale()))


@case(CHAIN)
def chain_by_vindex() -> Made:
    return _chain(
        lambda t, z: _init() if z is None else Vindex(_trans())[z, :],
        lambda t, z, _: dist.Normal(Vindex(locs())[..., z], scale()),
    )


@case({"trans": SELECTED, "locs": SELECTED})
def chain_starts_in_its_table() -> Made:
    """The first state is drawn from a row of the table that later ones are drawn from."""
    return _chain(lambda t, z: _trans()[0 if z is None else z], _fixed_width)


@case({"init": SELECTED, "trans": SELECTED, "locs": SELECTED})
def locs_per_step() -> Made:
    def emission(t: int, z: Tensor, _: Tensor) -> dist.TorchDistribution:
        table = pyro.param("locs", f64([[-0.7, 1.6], [-1.2, 1.9], [-0.9, 0.8], [-0.2, 1.1]]))
        return dist.Normal(table[t][z], f64(0.9))

    return _chain(_plain, emission)


@case({"init": SELECTED, "trans": SELECTED, "locs": SELECTED})
def trans_per_step() -> Made:
    def probs(t: int, z: State) -> Tensor:
        tables = pyro.param("trans", torch.stack([TRANS, TRANS.flip(0), 0.5 * TRANS + 0.25]), constraint=simplex)
        return _init() if z is None else tables[t - 1, z]

    return _chain(probs, _fixed_width)


@case(
    {
        "init": SELECTED,
        "trans": SELECTED,
        "locs": SELECTED,
        "scales": SELECTED,
    }
)
def scales_per_half() -> Made:
    """A location has one scale each, so that the closed form is joint: its weighted mean does not need the scale."""

    def emission(t: int, z: Tensor, _: Tensor) -> dist.TorchDistribution:
        table = pyro.param("locs", f64([[-0.7, 1.6], [-1.2, 1.9], [-0.9, 0.8], [-0.2, 1.1]]))
        scales = pyro.param("scales", f64([1.3, 1.0]), constraint=dist.constraints.positive)
        return dist.Normal(table[t, z], scales[t // 2])

    return _chain(_plain, emission)


@case({"coupled": SELECTED, "other": SELECTED, "locs": SELECTED})
def two_chains_by_vindex() -> Made:
    """A chain whose table is read by its own past and by another chain."""

    def model(x: Tensor) -> None:
        other = pyro.param("other", TRANS, constraint=simplex)
        coupled = pyro.param("coupled", torch.stack([TRANS, f64([[0.25, 0.75], [0.5, 0.5]])]), constraint=simplex)
        table = pyro.param("locs", f64([[-1.4, 0.4], [0.9, 2.1]]))
        w = y = torch.tensor(0)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(3)):
                w = pyro.sample(f"w_{t}", dist.Categorical(other[w]))
                y = pyro.sample(f"y_{t}", dist.Categorical(Vindex(coupled)[w, y, :]))
                pyro.sample(f"x_{t}", dist.Normal(Vindex(table)[w, y], f64(0.9)), obs=x[:, t])

    return model, (SERIES,), {}


@case({"stay": affine(), "locs": SELECTED})
def trans_by_complements() -> Made:
    """A chain of two states by the probabilities of staying in each."""

    def probs(t: int, z: State) -> Tensor:
        stay = pyro.param("stay", f64([0.7, 0.6]), constraint=unit_interval)
        table = torch.stack([torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])])
        return INIT if z is None else table[z]

    return _chain(probs, _fixed_width)


@case({"trans": (selection(exact=None, optional=True), opaque(same=True, exact=None)), "locs": SELECTED})
def stationary_start() -> Made:
    """The first state has the chain's stationary distribution: counting transitions is not all there is."""

    def probs(t: int, z: State) -> Tensor:
        return torch.linalg.matrix_power(_trans(), 64)[0] if z is None else _trans()[z]

    return _chain(probs, _fixed_width)


@case(
    {
        "init": SELECTED,
        "trans": SELECTED,
        # At the first step the slope's factor is zero and the location is a selection.
        "locs": (affine(exact=True), selection(optional=True)),
        "slopes": affine(exact=True),
    }
)
def autoregressive() -> Made:
    """The mean depends on the observation before, which is zero at the first step."""

    def emission(t: int, z: Tensor, before: Tensor) -> dist.TorchDistribution:
        slopes = pyro.param("slopes", f64([0.4, -0.3]))
        return dist.Normal(locs()[z] + slopes[z] * before, f64(0.9))

    return _chain(_plain, emission)
