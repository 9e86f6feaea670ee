"""Standard errors: against closed forms, finite differences of the log evidence, and hand-written likelihoods."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import positive, simplex, unit_interval
from untouched import untouched

from pyro_em import EM, SVI, FitResult, InformationError, ModelError, fit

TIGHT = EM(tol=1e-10)


def fitted(model: Any, *args: Any, strategy: Any = TIGHT, **options: Any) -> FitResult:
    return fit(model, *args, strategy=strategy, seed=0, progress=False, **options)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def coin(x: Tensor) -> None:
    p = pyro.param("p", torch.tensor(0.4), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def mixture(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.3, 0.3, 0.4]), constraint=simplex)
    locs = pyro.param("locs", torch.tensor([-2.0, 0.5, 3.0]))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


THREE = torch.cat([draws(60) - 3.0, draws(80, seed=1), draws(50, seed=2) + 4.0])
COIN = torch.tensor([1.0] * 13 + [0.0] * 27, dtype=torch.float64)


# Closed forms ---------------------------------------------------------------------------------------------------------


def test_normal() -> None:
    x = 3.0 + 2.0 * draws(50)
    result = fitted(gaussian, x)
    scale = x.std(correction=0)
    errors = result.stderr()
    torch.testing.assert_close(errors["loc"], scale / 50**0.5)
    torch.testing.assert_close(errors["scale"], scale / 100**0.5)
    vcov = result.vcov()
    assert list(vcov.index) == list(vcov.columns) == ["loc", "scale"]
    assert vcov.loc["loc", "scale"] == pytest.approx(0.0, abs=1e-9)


def test_bernoulli_and_its_interval_on_the_log_odds() -> None:
    result = fitted(coin, COIN)
    p, n = 13 / 40, 40
    assert result.stderr()["p"].item() == pytest.approx((p * (1 - p) / n) ** 0.5, rel=1e-9)
    half = 1.6448536269514722 / (n * p * (1 - p)) ** 0.5
    expected = [1 / (1 + np.exp(-(np.log(p / (1 - p)) + sign * half))) for sign in (-1, 1)]
    np.testing.assert_allclose(result.confint(0.9).loc["p"], expected, rtol=1e-9)


def test_poisson_and_its_interval_on_the_logarithm() -> None:
    def counts(x: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0, 2.0, 6.0])
    result = fitted(counts, x)
    rate = x.mean().item()
    assert result.stderr()["rate"].item() == pytest.approx((rate / 7) ** 0.5, rel=1e-9)
    half = 1.959963984540054 / (7 * rate) ** 0.5
    np.testing.assert_allclose(result.confint().loc["rate"], [rate * np.exp(-half), rate * np.exp(half)], rtol=1e-9)


def test_simplex_has_the_covariance_of_a_multinomial() -> None:
    def die(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(4) / 4, constraint=simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(weights), obs=x)

    result = fitted(die, torch.tensor([0] * 7 + [1] * 4 + [2] * 20 + [3] * 9))
    p = np.array([7, 4, 20, 9]) / 40
    np.testing.assert_allclose(result.vcov(), (np.diag(p) - np.outer(p, p)) / 40, atol=1e-12)
    assert list(result.vcov().index) == [f"weights[{k}]" for k in range(4)]
    bounds, half = result.confint(), 1.959963984540054 / np.sqrt(40 * p * (1 - p))
    np.testing.assert_allclose(bounds["lower"], 1 / (1 + np.exp(-(np.log(p / (1 - p)) - half))), rtol=1e-8)
    assert ((bounds["lower"] > 0) & (bounds["upper"] < 1)).all()


@pytest.mark.parametrize("kind", ["covariance_matrix", "scale_tril"])
def test_covariance_of_a_normal(kind: str) -> None:
    """n cov(S_ij, S_kl) = S_ik S_jl + S_il S_jk, whichever matrix is the parameter."""

    def model(x: Tensor) -> None:
        constraint = constraints.lower_cholesky if kind == "scale_tril" else constraints.positive_definite
        matrix = pyro.param("matrix", torch.eye(2), constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), **{kind: matrix}), obs=x)

    x = draws(80, 2) @ torch.tensor([[1.0, 0.4], [0.0, 2.0]])
    result = fitted(model, x)
    s = (x.mT @ x / 80).numpy()
    expected = np.array(
        [
            [(s[i, k] * s[j, m] + s[i, m] * s[j, k]) / 80 for k in range(2) for m in range(2)]
            for i in range(2)
            for j in range(2)
        ]
    )
    found = result.vcov().to_numpy()
    if kind == "scale_tril":
        lower = result.params["matrix"]
        jacobian = torch.autograd.functional.jacobian(lambda t: t @ t.mT, lower).reshape(4, 4).numpy()
        assert found[1] == pytest.approx(0.0, abs=1e-12)  # what stands above the diagonal is no parameter
        found = jacobian @ found @ jacobian.T
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_prior_of_a_point_estimate_counts() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(1.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 2.0), obs=x)

    x = draws(10)
    assert fitted(model, x).stderr()["loc"].item() == pytest.approx((10 / 4 + 1 / 0.25) ** -0.5, rel=1e-9)
    free = fitted(model, x, strategy=EM(tol=1e-10, priors=False))
    assert free.stderr()["loc"].item() == pytest.approx((10 / 4) ** -0.5, rel=1e-9)


def test_linkage_of_genes() -> None:
    """Rao's 197 animals: the observed information is 435.3 - 57.8 = 377.5 (McLachlan & Krishnan 2008, chapter 4)."""
    cell = torch.tensor([0, 0, 1, 2, 3])

    def model(x: Tensor) -> None:
        t = pyro.param("t", torch.tensor(0.5), constraint=unit_interval)
        with pyro.plate("animals", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.stack([torch.tensor(2.0), t, 1 - t, 1 - t, t]) / 4))
            pyro.sample("x", dist.Categorical(torch.eye(4)[cell[z]]), obs=x)

    x = torch.repeat_interleave(torch.arange(4), torch.tensor([125, 18, 20, 34]))
    result = fitted(model, x)
    t = result.params["t"].item()
    assert t == pytest.approx(0.626821498, abs=1e-6)
    assert result.stderr()["t"].item() ** -2 == pytest.approx(377.5, abs=0.05)
    exact = 125 / (2 + t) ** 2 + 38 / (1 - t) ** 2 + 34 / t**2
    assert result.stderr()["t"].item() ** -2 == pytest.approx(exact, rel=1e-6)


# Against differences of the log evidence, and likelihoods written by hand ---------------------------------------------


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


# What has no standard errors, by name ---------------------------------------------------------------------------------


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


def test_clusters_a_thousand_nats_apart_have_the_errors_of_known_labels() -> None:
    x = torch.cat([draws(40), 100.0 + draws(60, seed=1)])

    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=unit_interval)
        locs = pyro.param("locs", torch.tensor([-1.0, 99.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=x)

    errors = fitted(model, x).stderr()
    torch.testing.assert_close(errors["locs"], torch.tensor([1 / 40, 1 / 60]).sqrt())
    assert errors["p"].item() == pytest.approx((0.4 * 0.6 / 100) ** 0.5, rel=1e-9)
