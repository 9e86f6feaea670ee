"""Latents with a flat prior are parameters: the same maximum, in closed form."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em import EM, SVI, FitResult, fit

START = {
    "loc": torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64),
    "scale": torch.ones(2, dtype=torch.float64),
    "weights": torch.full((2,), 0.5, dtype=torch.float64),
}


def mixture(x: Tensor, loc: Tensor, scale: Tensor, weights: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z].unsqueeze(-1)).to_event(1), obs=x)


def by_param(x: Tensor) -> None:
    loc = pyro.param("loc", START["loc"].clone())
    scale = pyro.param("scale", START["scale"].clone(), constraint=constraints.positive)
    weights = pyro.param("weights", START["weights"].clone(), constraint=constraints.simplex)
    mixture(x, loc, scale, weights)


def improper(x: Tensor) -> None:
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.ImproperUniform(constraints.real_vector, (), (2,)))
        scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    mixture(x, loc, scale, pyro.sample("weights", dist.ImproperUniform(constraints.simplex, (), (2,))))


def masked(x: Tensor) -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(zero, 1.0).to_event(1).mask(False))
        with pyro.poutine.mask(mask=False):
            scale = pyro.sample("scale", dist.HalfNormal(zero + 1.0))
    mixture(x, loc, scale, pyro.sample("weights", dist.Dirichlet(zero + 5.0).mask(False)))


def blobs() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(90, 2, generator=generator, dtype=torch.float64)
    return torch.cat([noise[:40] - 2.0, 0.7 * noise[40:] + 1.0])


def em(model: Callable[..., None]) -> FitResult:
    return fit(model, blobs(), strategy=EM(max_steps=15, tol=0), init=START, progress=False)


@pytest.mark.parametrize("model", [improper, masked])
def test_flat_priors_leave_the_fit_of_plain_parameters(model: Callable[..., None]) -> None:
    flat, plain = em(model), em(by_param)
    assert set(flat.explain()["owner"]) == {"closed form"}
    assert flat.log_evidence == pytest.approx(plain.log_evidence, rel=1e-6)
    for name, value in plain.params.items():
        assert torch.allclose(flat.params[name].to(torch.float64), value, atol=1e-5), name


def test_improper_latents_start_anywhere_in_their_support() -> None:
    """There is nothing to draw them from, and Pyro's own draw is an error."""
    pyro.set_rng_seed(0)
    start = fit(improper, blobs(), strategy=EM(max_steps=0), progress=False).params
    assert bool((start["scale"] > 0).all()) and float(start["weights"].detach().sum()) == pytest.approx(1.0)
    assert len(start["loc"].unique()) == 4  # equal components would never part
    reached = fit(improper, blobs(), strategy=EM(restarts=5), progress=False).log_evidence
    assert reached == pytest.approx(em(by_param).log_evidence, abs=1e-2)


def test_improper_latents_are_answered_for_by_draws_and_guides() -> None:
    result = em(improper)
    assert result.predict(num_samples=2)["x"].shape == (2, 90, 2)
    assert result.posterior(blobs()[:5])["z"].probs.shape == (5, 2)

    def guide(x: Tensor) -> None:
        at = {n: v.detach() for n, v in START.items()}
        with pyro.plate("components", 2):
            pyro.sample("loc", dist.Delta(at["loc"]).to_event(1))
            pyro.sample("scale", dist.Delta(at["scale"]))
        pyro.sample("weights", dist.Delta(pyro.param("q", at["weights"]), event_dim=1))

    start = fit(improper, blobs(), strategy=SVI(guide, max_steps=1), progress=False)
    exact = fit(by_param, blobs(), strategy=EM(max_steps=0), progress=False)
    assert float(start.history["objective"].iloc[0]) == pytest.approx(exact.log_evidence, rel=1e-6)
