"""Standard errors: against differences of the log evidence, and likelihoods written by hand."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.information import THREE, draws, fitted, gaussian, mixture
from torch import Tensor
from torch.distributions.constraints import simplex

from pyro_em import EM, SVI


def second_differences(evidence: Any, at: np.ndarray, width: float = 1e-3) -> np.ndarray:
    """The Hessian by the four-point formula, which knows nothing of gradients."""
    steps = width * np.eye(len(at))
    return np.array(
        [
            [
                (evidence(at + a + b) - evidence(at + a - b) - evidence(at - a + b) + evidence(at - a - b))
                / (4 * width**2)
                for b in steps
            ]
            for a in steps
        ]
    )


def test_mixture_against_differences_of_its_log_evidence() -> None:
    """Free coordinates here: two weights, the locs, the scale; nothing is differentiated."""
    result = fitted(mixture, THREE)
    p = result.params

    def evidence(v: np.ndarray) -> float:
        weights, locs, scale = np.append(v[:2], 1 - v[:2].sum()), v[2:5], v[5]
        z = (THREE.numpy()[:, None] - locs) / scale
        return float(np.log((weights * np.exp(-0.5 * z**2) / (scale * np.sqrt(2 * np.pi))).sum(1)).sum())

    at = torch.cat([p["weights"][:2], p["locs"], p["scale"][None]]).numpy()
    assert evidence(at) == pytest.approx(result.log_evidence, abs=1e-9)
    expected = np.linalg.inv(-second_differences(evidence, at))
    labels = ["weights[0]", "weights[1]", "locs[0]", "locs[1]", "locs[2]", "scale"]
    np.testing.assert_allclose(result.vcov().loc[labels, labels], expected, rtol=1e-4, atol=1e-7)


def test_chain_against_the_forward_algorithm() -> None:
    x = torch.tensor([0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]).reshape(5, 4)

    def model(x: Tensor) -> None:
        trans = pyro.param("trans", torch.tensor([[0.7, 0.3], [0.4, 0.6]]), constraint=simplex)
        emit = torch.tensor([0.15, 0.8])
        with pyro.plate("sequences", len(x)):
            z = 0
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
                pyro.sample(f"x_{t}", dist.Bernoulli(emit[z]), obs=x[:, t].double())

    def evidence(v: Tensor) -> Tensor:
        trans = torch.stack([torch.stack([1 - v[0], v[0]]), torch.stack([v[1], 1 - v[1]])])
        emit = torch.tensor([[0.85, 0.15], [0.2, 0.8]])
        total = torch.zeros(())
        for row in x:
            alpha = torch.tensor([1.0, 0.0])
            for symbol in row:
                alpha = (alpha @ trans) * emit[:, symbol]
            total = total + alpha.sum().log()
        return total

    result = fitted(model, x)
    at = torch.stack([result.params["trans"][0, 1], result.params["trans"][1, 0]])
    expected = torch.linalg.inv(-torch.func.hessian(evidence)(at))
    labels = ["trans[0,1]", "trans[1,0]"]
    # EM stops within 1e-10 nats of the maximum; off it, a Hessian depends on the coordinates it is taken in.
    np.testing.assert_allclose(result.vcov().loc[labels, labels], expected, rtol=2e-5)


def test_networks_on_the_way_and_tied_tensors() -> None:
    """A parameter that reaches the model through arithmetic, and one tensor under two names."""

    class Shift(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.1))
            self.b = self.a

    shift, x = Shift(), draws(30)

    def model(x: Tensor) -> None:
        pyro.module("shift", shift)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.sinh(shift.a) + shift.b, 1.0), obs=x)

    result = fitted(model, x)
    a = result.params["shift$$$a"]
    torch.testing.assert_close(result.stderr()["shift$$$a"], 1 / ((a.cosh() + 1) * 30**0.5))
    assert len(result.vcov()) == 1


def test_weight_two_is_a_row_twice() -> None:
    weights = 1.0 + (torch.arange(len(THREE)) % 3 == 0)
    weighted = fitted(mixture, THREE, weights=weights)
    repeated = fitted(mixture, torch.repeat_interleave(THREE, weights.long()))
    np.testing.assert_allclose(weighted.vcov(), repeated.vcov(), rtol=1e-4, atol=1e-9)


def test_fixed_parameters_have_no_error_and_lend_theirs() -> None:
    x = 3.0 + 2.0 * draws(50)
    result = fitted(gaussian, x, strategy=EM(tol=1e-10, fixed=("scale",)))
    assert set(result.stderr()) == {"loc"}
    assert result.stderr()["loc"].item() == pytest.approx(50**-0.5, rel=1e-9)


def test_svi_without_a_guide_agrees_with_em() -> None:
    em = fitted(mixture, THREE)
    svi = fitted(mixture, THREE, strategy=SVI(max_steps=0), init=em)
    for name, error in em.stderr().items():
        torch.testing.assert_close(svi.stderr()[name], error)


def test_parameters_of_a_guide_have_no_error() -> None:
    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            logits = torch.stack([-slope * x, torch.zeros_like(x), slope * x], -1)
            pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    em = fitted(mixture, THREE)
    svi = fitted(mixture, THREE, strategy=SVI(guide, max_steps=0), init=em)
    assert set(svi.stderr()) == {"weights", "locs", "scale"}


def test_single_precision() -> None:
    x = THREE.float()
    torch.set_default_dtype(torch.float32)
    single = fitted(mixture, x, strategy=EM(tol=1e-4))
    torch.set_default_dtype(torch.float64)
    np.testing.assert_allclose(single.stderr()["locs"], fitted(mixture, THREE).stderr()["locs"], rtol=2e-2)


class _Once(torch.autograd.Function):
    """x squared, whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class _Detached(_Once):
    """The same, whose backward pass forgets that it depends on x and says nothing."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * grad


@pytest.mark.parametrize("square", [_Once, _Detached])
def test_operations_without_a_second_derivative(square: Any) -> None:
    def model(x: Tensor) -> None:
        root = pyro.param("root", torch.tensor(1.0))
        log_scale = pyro.param("log_scale", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(square.apply(root), log_scale.exp()), obs=x)

    x = 1e-3 * (2.0 + draws(40))
    result = fitted(model, x)
    errors, scale = result.stderr(), x.std(correction=0)
    torch.testing.assert_close(errors["root"], scale / 40**0.5 / (2 * result.params["root"].abs()), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(errors["log_scale"], torch.tensor(80.0).rsqrt(), rtol=1e-6, atol=0.0)
