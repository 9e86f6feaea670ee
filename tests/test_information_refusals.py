"""What has no standard errors is named, and asking for them changes nothing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.information import COIN, THREE, coin, draws, fitted, gaussian, mixture
from torch import Tensor
from torch.distributions.constraints import positive, simplex
from untouched import untouched

from pyro_em import EM, SVI, InformationError, ModelError


def test_parameter_at_its_boundary_is_named() -> None:
    result = fitted(coin, torch.ones(20))
    for ask in (result.stderr, result.vcov, result.confint):
        with pytest.raises(InformationError, match=r"Parameter 'p' \(Interval.*edge of its constraint.*fixed=\('p',\)"):
            ask()


def test_empty_state_is_named() -> None:
    def die(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(weights), obs=x)

    with pytest.raises(InformationError, match=r"Parameter 'weights'.*does not change with 'weights\[1\]'"):
        fitted(die, torch.tensor([0, 0, 2, 2, 2])).stderr()


def test_parameters_that_only_their_sum_is_known_of_are_named() -> None:
    def model(x: Tensor) -> None:
        a, b = pyro.param("a", torch.tensor(0.1)), pyro.param("b", torch.tensor(0.2))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, scale), obs=x)

    with pytest.raises(InformationError, match=r"do not determine \['a', 'b'\]"):
        fitted(model, draws(30)).stderr()


def test_parameter_without_effect_is_named() -> None:
    def model(x: Tensor) -> None:
        pyro.param("idle", torch.tensor(0.1))
        gaussian(x)

    with pytest.raises(InformationError, match=r"do not determine \['idle'\]"):
        fitted(model, draws(30)).stderr()


def test_equal_components_tell_nothing_of_their_weights() -> None:
    equal = fitted(mixture, THREE, strategy=EM(max_steps=0), init={"locs": torch.zeros(3)})
    with pytest.raises(InformationError, match=r"does not change with 'weights\[\d\]'"):
        equal.stderr()


def test_a_point_where_the_evidence_curves_upwards_is_named() -> None:
    start = fitted(mixture, THREE, strategy=EM(max_steps=0))
    with pytest.raises(InformationError, match=r"not at a maximum: .* \['locs', 'scale', 'weights'\]"):
        start.stderr()


def test_a_fit_that_has_not_arrived_warns() -> None:
    early = fitted(mixture, THREE, strategy=EM(max_steps=8))
    with pytest.warns(RuntimeWarning, match="standard errors away from the maximum"):
        early.stderr()


def test_continuous_latents_have_no_log_evidence() -> None:
    def model(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * c, 0.5), obs=x)

    result = fitted(model, draws(6), strategy=SVI(max_steps=2))
    with pytest.raises(ModelError, match=r"\['c'\] cannot be summed out"):
        result.stderr()


def test_too_many_parameters_are_refused_before_they_fill_the_memory() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.param("big", torch.zeros(6000)), 1.0).to_event(1), obs=x)

    with pytest.raises(InformationError, match="these have 6000 numbers, and the limit is 5000"):
        fitted(model, torch.zeros(6000), strategy=EM(max_steps=0)).stderr()


def test_asking_leaves_no_trace() -> None:
    result = fitted(mixture, THREE)
    before = {n: v.clone() for n, v in result.params.items()}
    with untouched():
        first = result.vcov()
        assert result.bic > result.aic
    assert all(torch.equal(result.params[n], v) for n, v in before.items())
    result.stderr()["locs"].zero_()
    assert result.vcov().equals(first)
    assert (result.stderr()["locs"] > 0).all()


def test_level_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1; got 95"):
        fitted(coin, COIN).confint(95)
