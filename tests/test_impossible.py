"""Data that no state explains: they have no posterior, and take none from others."""

from decimal import Decimal, localcontext
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import brute_force
from torch import Tensor
from torch.distributions.constraints import positive, simplex

from pyro_em import EM, FitResult, ModelError, fit
from pyro_em.graph.impossible import with_true_zeros

X = torch.tensor([[0, 0], [1, 0], [2, 1], [6, 1], [7, 1], [5, 0]])
NEW = torch.tensor([[1, 0], [7, 1], [3, 2]])  # no state gives the category of the last
KINDS: dict[str, Any] = {
    "bernoulli": lambda: dist.Bernoulli(0.5),
    "categorical": lambda: dist.Categorical(torch.tensor([0.5, 0.5])),
    "onehot": lambda: dist.OneHotCategorical(torch.tensor([0.5, 0.5])),
}


def counts(x: Tensor, kind: str = "bernoulli") -> None:
    rate = pyro.param("rate", torch.tensor([1.0, 6.0]), constraint=positive)
    p = pyro.param("p", torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]]), constraint=simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", KINDS[kind]())
        z = z[..., 1] if kind == "onehot" else z
        pyro.sample("n", dist.Poisson(rate[z.long()]), obs=x[:, 0])
        pyro.sample("s", dist.Categorical(p[z.long()]), obs=x[:, 1])


def fitted(model: Any, *args: Any, **options: Any) -> FitResult:
    return fit(model, *args, strategy=EM(max_steps=3), seed=0, progress=False, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_possible_data_keep_their_posteriors(kind: str) -> None:
    result = fitted(counts, X, kind=kind)
    posterior = result.posterior(NEW, kind=kind)
    with result.use():
        expected = brute_force(partial(counts, kind=kind), (NEW[:2],)).marginal("z")
    torch.testing.assert_close(posterior.marginal("z")[:2], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(posterior.joint("z").probs[:2], expected, rtol=0, atol=1e-12)
    for table in (posterior.marginal("z"), posterior.joint("z").probs, posterior["z"].probs.reshape(3, -1)):
        assert torch.equal(table.isnan().all(-1), torch.tensor([False, False, True]))
        assert torch.equal(table.isnan().any(-1), posterior.log_likelihood == -torch.inf)


@pytest.mark.parametrize("ask", ["map", "sample"])
def test_no_value_stands_for_impossible_data(ask: str) -> None:
    posterior = fitted(counts, X).posterior(NEW)
    with pytest.raises(ModelError, match=r"1 of 3 elements of plate 'data' is impossible.*index 2.*'z'.*Ask without"):
        getattr(posterior, ask)()
    assert fitted(counts, X).posterior(NEW[:2]).map()["z"].tolist() == [0.0, 1.0]


def test_replicates_and_the_guide_say_so_too() -> None:
    result = fitted(counts, X)
    for ask in (lambda: result.predict(NEW), lambda: result.guide(NEW)):
        with pytest.raises(ModelError, match="1 of 3 elements of plate 'data' is impossible"):
            ask()


def test_latents_of_a_group_share_its_impossible_member() -> None:
    def groups(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]]), constraint=simplex)
        with pyro.plate("groups", len(x), dim=-2):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            with pyro.plate("members", x.shape[1], dim=-1):
                w = pyro.sample("w", dist.Bernoulli(0.3 + 0.4 * z))
                pyro.sample("x", dist.Categorical(p[w.long()]), obs=x)

    new = torch.tensor([[0, 1, 0], [0, 1, 2]])
    result = fitted(groups, new[:1])
    posterior = result.posterior(new)
    with result.use():
        expected = brute_force(groups, (new[:1],))
    for name in ("z", "w"):
        torch.testing.assert_close(posterior.marginal(name)[:1], expected.marginal(name), rtol=0, atol=1e-12)
        assert posterior.marginal(name)[1].isnan().all()
    with pytest.raises(ModelError, match=r"1 of 2 elements of plate 'groups' is impossible.*index 1"):
        posterior.sample()


f64 = partial(torch.tensor, dtype=torch.float64)
LEFT_TO_RIGHT = f64([[0.6, 0.4], [0.0, 1.0]])
EMISSION = f64([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])
SERIES = torch.tensor([[0, 1, 2, 1], [0, 2, 0, 1], [0, 0, 1, 1]])  # the second one goes back


def chains(x: Tensor) -> None:
    trans = pyro.param("trans", LEFT_TO_RIGHT, constraint=simplex)
    with pyro.plate("series", len(x)):
        z: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"x_{t}", dist.Categorical(EMISSION[z]), obs=x[:, t])


def test_series_that_a_chain_cannot_take() -> None:
    result = fitted(chains, SERIES[::2])
    posterior = result.posterior(SERIES)
    with result.use():
        expected = brute_force(chains, (SERIES[::2],))
    for t in range(4):
        found = posterior[f"z_{t}"].probs
        torch.testing.assert_close(found[::2], expected.marginal(f"z_{t}"), rtol=0, atol=1e-12)
        assert found[1].isnan().all()
    assert torch.equal(posterior.chain("z_0").smoothed.isnan().all(-1).all(-1), torch.tensor([False, True, False]))
    for ask in (posterior.map, posterior.sample):
        with pytest.raises(ModelError, match=r"1 of 3 elements of plate 'series' is impossible.*index 1"):
            ask()


def test_series_that_the_states_behind_a_site_cannot_take() -> None:
    def model(x: Tensor) -> None:
        trans = pyro.param("trans", LEFT_TO_RIGHT, constraint=simplex)
        start = torch.tensor([1.0, 0.0])
        with pyro.plate("series", len(x)):
            fn = dist.DiscreteHMM(start.log(), trans.log(), dist.Categorical(EMISSION), duration=x.shape[1])
            pyro.sample("x", fn, obs=x)

    result = fitted(model, SERIES[::2])
    posterior, rest = result.posterior(SERIES), result.posterior(SERIES[::2])
    found = posterior["x.states"].probs
    torch.testing.assert_close(found[::2], rest["x.states"].probs, rtol=0, atol=1e-12)
    assert found[1].isnan().all()
    for ask in (posterior.map, posterior.sample):
        with pytest.raises(ModelError, match=r"1 of 3 elements of plate 'series'.*index 1.*'x.states'"):
            ask()


def test_a_latent_of_all_data_loses_its_posterior_with_any_of_them() -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]]), constraint=simplex)
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p[z.long()]), obs=x)

    posterior = fitted(model, torch.tensor([0, 1, 1])).posterior(torch.tensor([0, 1, 2]))
    assert posterior["z"].probs.isnan()
    with pytest.raises(ModelError, match=r"The data are impossible.*'z'"):
        posterior.map()


FAILURES = {
    "mixed": lambda total, mean: dist.GammaPoisson(total, total / mean),
    "trials": lambda total, mean: dist.NegativeBinomial(total, logits=(mean / total).log()),
}
WRAPPED: dict[str, Any] = {
    "bare": lambda fn: fn,
    "event": lambda fn: fn.to_event(1),
    "masked": lambda fn: fn.mask(torch.tensor(True)),
    "expanded": lambda fn: fn.expand([4]),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("total", [0.5, 1e6, 3e6, 1e9, 1e13, 1e25, 1e60])
def test_negative_binomials_have_their_densities_up_to_the_limit(total: float, kind: str, wrapper: str) -> None:
    """Against products of the ratios by which a count differs from the one before, in longer arithmetic."""
    mean, counts = torch.tensor(2.5, dtype=torch.float64), torch.tensor([0.0, 1.0, 7.0, 40.0], dtype=torch.float64)
    with localcontext() as digits:
        digits.prec = 90
        r, m = Decimal(total), Decimal("2.5")
        none = r * (r / (r + m)).ln()
        rises = [((r + j) / (j + 1) * m / (r + m)).ln() for j in range(40)]
        by_hand = [float(none + sum(rises[: int(x)])) for x in counts.tolist()]
    leaf = torch.tensor(total, dtype=torch.float64, requires_grad=True)
    fn = WRAPPED[wrapper](FAILURES[kind](leaf.expand(4), mean.expand(4)))
    found = with_true_zeros(fn).log_prob(counts)
    expected = torch.tensor(by_hand, dtype=torch.float64)
    expected = expected.sum() if wrapper == "event" else expected
    digits_lost = 1e-8 if total == 1e6 else 0.0  # the library's own, just below where ours begins
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 + digits_lost)
    found.sum().backward()
    assert bool(leaf.grad.isfinite())


def test_a_climb_to_the_limit_of_a_negative_binomial_ends_at_that_of_a_poisson() -> None:
    """It ended at probabilities of one, the total count at 1e37."""
    x = torch.tensor([0.0, 1, 0, 1, 1, 0, 2, 1, 0, 1], dtype=torch.float64)

    def model(x: Tensor) -> None:
        total = pyro.param("total", x.new_tensor(2.0), constraint=positive)
        level = pyro.param("level", x.new_tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.GammaPoisson(total, total * torch.exp(-level)), obs=x)

    found = fit(model, x, strategy=EM(), progress=False)
    assert found.objective == pytest.approx(float(dist.Poisson(x.mean()).log_prob(x).sum()), abs=1e-4)
