"""Models with chains: the stacked forward-backward against elimination, brute force and Pyro, in every structure."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import pytest
import torch
from chain_models import LENGTHS, MODELS, T
from oracle import brute_force, pyro_evidence
from torch import Tensor

import pyro_em.graph.chain
import pyro_em.probing.stacks
from pyro_em import EM, FitResult, fit
from pyro_em.graph import FactorGraph, clique_posteriors, maximise, sample, split
from pyro_em.graph.eliminate import index_table

every_model = pytest.mark.parametrize("name", MODELS)
SHORT = 3  # frames of a chain whose joint states can be counted


def run(name: str, *args: Any, **options: Any) -> FitResult:
    model, data = MODELS[name]
    return fit(model, *(args or data), strategy=EM(**{"max_steps": 0, **options}), progress=False)


@contextmanager
def without_chains(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Elimination one latent after the other, as for any other structure."""
    with monkeypatch.context() as patch:
        for module in (pyro_em.graph.chain, pyro_em.probing.stacks):
            patch.setattr(module, "find_frames", lambda scopes: None)
        pyro_em.graph.chain._split.cache_clear()
        yield
    pyro_em.graph.chain._split.cache_clear()


def short(name: str) -> tuple[Tensor, ...]:
    """The first row and times of a model's data."""
    _, data = MODELS[name]
    if name in ("per_time", "coupled", "uneven"):
        pytest.skip("its parameters know the length of the series")
    if name == "ragged":
        return data[0][:1, :SHORT], LENGTHS[2:3] + 1
    return tuple(x[:1, :SHORT] if x.dim() > 1 and x.shape[1] == T else x[:SHORT] for x in data)


def score(graph: FactorGraph, states: Mapping[str, Tensor]) -> float:
    """The log-joint of one assignment."""
    by_variable = {v: states[v.name].unsqueeze(0) for f in graph.factors for v in f.scope}
    return sum(
        float(index_table(f.table, f.dims, {v: by_variable[v] for v in f.scope}, 1).sum()) for f in graph.factors
    )


@every_model
def test_it_is_a_chain(name: str) -> None:
    """All latents in frames, all sites in a few stacks."""
    result = run(name)
    chains, rest = split(result.posterior().graph)
    assert len(chains) == 1 and rest == ()
    assert len(result.explain()) <= 10


@every_model
def test_steps_are_those_of_elimination(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = run(name, max_steps=3, tol=0, on_degenerate="floor")
    with without_chains(monkeypatch):
        stepwise = run(name, max_steps=3, tol=0, on_degenerate="floor")
    assert stacked.log_evidence == pytest.approx(stepwise.log_evidence, abs=1e-10)
    torch.testing.assert_close(
        stacked.history.objective.tolist(), stepwise.history.objective.tolist(), rtol=1e-12, atol=0
    )
    for param, value in stepwise.params.items():
        torch.testing.assert_close(stacked.params[param], value, rtol=0, atol=1e-10)


@every_model
def test_posteriors_are_those_of_elimination(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = run(name).posterior().graph
    found, best = clique_posteriors(graph), score(graph, maximise(graph))
    with without_chains(monkeypatch):
        expected, same = clique_posteriors(graph), score(graph, maximise(graph))
    assert found.log_evidence == pytest.approx(expected.log_evidence, abs=1e-10)
    for one, other in zip(found.weights, expected.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert best == pytest.approx(same, abs=1e-10)


@every_model
def test_brute_force(name: str) -> None:
    """Evidence, marginals, neighbours and the joint maximum of a chain so short that its states can be counted."""
    args = short(name)
    model, _ = MODELS[name]
    result = run(name, *args)
    given = {n: v for n, v in result.posterior().estimates.items()}
    with pyro.get_param_store().scope():
        oracle = brute_force(model, args, given=given, priors=False)
    post = result.posterior()
    assert post.log_evidence == pytest.approx(oracle.log_evidence, abs=1e-10)
    for site in post.graph.variables:
        torch.testing.assert_close(post.marginal(site), oracle.marginal(site), rtol=0, atol=1e-10)


@every_model
def test_evidence_is_that_of_pyro(name: str) -> None:
    model, data = MODELS[name]
    result = run(name)
    if name in ("ragged", "uneven"):
        pytest.skip("Pyro counts masked latents as uniform weights of one")
    given = {n: v for n, v in result.posterior().estimates.items()}
    with pyro.get_param_store().scope():
        expected = pyro_evidence(model, data, {}, given)
    assert result.objective == pytest.approx(expected, abs=1e-9)


@every_model
def test_draws_come_from_the_posterior(name: str) -> None:
    """The log-probability of a draw is its share of the evidence, and draws are as frequent as they are probable."""
    torch.manual_seed(0)
    graph = run(name).posterior().graph
    states, log_probs = sample(graph, 400)
    total = sum(p.reshape(400, -1).sum(1) for p in log_probs.values())
    cliques = clique_posteriors(graph)
    for i in (0, 399):
        joint = score(graph, {n: s[i] for n, s in states.items()})
        assert float(total[i]) == pytest.approx(joint - cliques.log_evidence, abs=1e-9)
    for factor, weight in zip(graph.factors, cliques.weights, strict=True):
        if factor.name in graph.variables and len(factor.scope) == 1:
            drawn = torch.nn.functional.one_hot(states[factor.scope[0].name], factor.scope[0].size).double().mean(0)
            expected = weight / factor.scale
            assert ((drawn - expected).abs() <= 5 * (expected * (1 - expected) / 400).sqrt() + 1e-12).all()


@every_model
def test_the_objective_never_falls(name: str) -> None:
    history = run(name, max_steps=6, tol=0, on_degenerate="floor").history.objective
    assert (history.diff().dropna() >= -1e-9 * history.abs().max()).all()


@pytest.mark.parametrize(
    ("name", "latent"), [("series", "z_0"), ("mixture", "z_0"), ("factorial", "w_0"), ("missing", "z_0")]
)
def test_a_chain_over_time(name: str, latent: str) -> None:
    """What the first t data say is what a posterior given the first t data alone says."""
    _, (x,) = MODELS[name]
    axis = 0 if name in ("series", "factorial") else 1
    result = run(name, max_steps=1)
    whole = result.posterior()
    chain = whole.chain(latent)
    marginals = torch.stack([whole.marginal(z) for z in chain.names], -2)
    torch.testing.assert_close(chain.smoothed, marginals.reshape(chain.smoothed.shape), rtol=0, atol=1e-12)
    evidence = torch.zeros(chain.plates[0].size if chain.plates else 1, dtype=torch.float64)
    for t, (site, after) in enumerate(itertools.pairwise(chain.names)):
        past = result.posterior(x.narrow(axis, 0, t + 1))
        now = chain.log_predictive[..., t].reshape(-1)
        torch.testing.assert_close(now, past.log_likelihood - evidence, rtol=0, atol=1e-10)
        evidence = past.log_likelihood
        filtered = past.marginal(site)
        torch.testing.assert_close(chain.filtered[..., t, :], filtered, rtol=0, atol=1e-12)
        neighbours = whole.joint(site, after).probs
        torch.testing.assert_close(chain.pairwise[..., t, :, :], neighbours, rtol=0, atol=1e-12)
        if name in ("series", "missing"):
            ahead = filtered @ result.params["trans"]
            torch.testing.assert_close(chain.predicted[..., t, :], ahead, rtol=0, atol=1e-12)
