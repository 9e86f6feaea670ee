"""Of a long loop, probing has one set of distinct values, the start, and the end of the fit to go by."""

import importlib
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em import EM, FitResult, Status, fit
from pyro_em.em.checks import look_at, prepare
from pyro_em.graph import Intervention
from pyro_em.params import ParamSpace
from pyro_em.probing import Opaque, Selected, probe
from pyro_em.problem import Problem
from pyro_em.rng import isolated_rng

f64 = partial(torch.tensor, dtype=torch.float64)
Way = Callable[[Tensor], Tensor]
X = torch.tensor([-0.7, 0.0, -0.3, -1.0, -0.2, 2.9, 3.3, 2.6, 3.1, 2.8, -0.5, -0.1], dtype=torch.float64)

PLAIN: list[Way] = [lambda x: x, lambda x: x.flip(0), lambda x: 1.0 * x]
BY_ORDER: list[Way] = [lambda x: x[x.detach().sort().indices], lambda x: x[x.detach().numpy().argsort()[::-1].copy()]]
BY_SIGN: list[Way] = [lambda x: x.square().sqrt(), lambda x: x * x.detach().sign(), lambda x: x.square() / x]


@pytest.fixture(autouse=True)
def short_ones_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("pyro_em.probing.probe"), "LONG", 4)


def loop(way: Way, start: list[float], log: bool = False) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        trans = pyro.param("trans", f64([[0.9, 0.1], [0.0, 1.0]] if log else [[0.8, 0.2], [0.3, 0.7]]), SIMPLEX)
        locs = pyro.param("locs", f64(start))
        z = 0
        for t in pyro.markov(range(len(x))):
            row = dist.Categorical(logits=trans.log()[z]) if log else dist.Categorical(trans[z])
            z = pyro.sample(f"z_{t}", row)
            pyro.sample(f"x_{t}", dist.Normal(way(locs)[z], 0.5), obs=x[t])

    return model


SIMPLEX = constraints.simplex


def route(model: Callable[[Tensor], None]) -> object:
    """What probing says of the locations."""
    space = ParamSpace(model, None, (X,), {})
    problem = Problem(model, (X,), {}, space, lambda: None)
    with isolated_rng(0), space.active():
        prepared = prepare(problem, look_at(problem, ((X,), {})))
        probed = probe(prepared.inference.program, space, *prepared.data, Intervention(), found=prepared.found)
    return probed.sites["x_0"].routes["loc"]


@pytest.mark.parametrize("start", [[0.5, 3.0], [3.0, 0.5], [-1.0, 3.0], [1.0, 1.0], [0.0, 0.0]], ids=str)
@pytest.mark.parametrize("log", [False, True])
def test_selections_are_found(start: list[float], log: bool) -> None:
    assert all(isinstance(route(loop(way, start, log)), Selected) for way in PLAIN)


@pytest.mark.parametrize("way", BY_ORDER)
@pytest.mark.parametrize("start", [[0.5, 3.0], [3.0, 0.5], [-1.0, 3.0]], ids=str)
def test_what_depends_on_the_order_of_parameters_is_opaque(way: Way, start: list[float]) -> None:
    assert isinstance(route(loop(way, start)), Opaque)


@pytest.mark.parametrize("way", BY_SIGN)
@pytest.mark.parametrize("start", [[-1.0, 3.0], [-1.0, -2.0]], ids=str)
def test_what_depends_on_the_sign_of_parameters_is_opaque(way: Way, start: list[float]) -> None:
    verdict = route(loop(way, start))
    assert isinstance(verdict, Selected) if way is BY_SIGN[2] else isinstance(verdict, Opaque)


def fitted(way: Way, start: list[float]) -> FitResult:
    return fit(loop(way, start), X, strategy=EM(), progress=False)


@pytest.mark.parametrize("way", BY_SIGN[:2])
def test_a_sign_that_turns_on_the_way_is_seen_at_the_end(way: Way) -> None:
    """Distinct values and start are positive, where the root of a square is the parameter; the maximum is not."""
    plain, found = fitted(PLAIN[0], [0.5, 3.0]), fitted(way, [0.5, 3.0])
    assert plain.params["locs"].min() < -0.05
    assert found.status is Status.CONVERGED
    assert found.objective < plain.objective - 1e-3
    rows = found.explain()
    assert set(rows.loc[rows["parameter"] == "locs", "owner"]) == {"gradient"}


@pytest.mark.parametrize("way", BY_ORDER)
def test_an_order_that_ties_hide_at_the_start_does_no_harm(way: Way) -> None:
    """The objective is the program's, at the parameters found."""
    found = fitted(way, [1.0, 1.0])
    assert isinstance(route(loop(way, found.params["locs"].tolist())), Opaque)
    by_program = fit(loop(way, [1.0, 1.0]), X, strategy=EM(max_steps=0), init=found, progress=False)
    assert found.status is Status.CONVERGED
    assert found.objective == pytest.approx(by_program.objective, abs=1e-9)
