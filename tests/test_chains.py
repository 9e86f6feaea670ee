"""Chains of discrete latents against the sum over all paths, for compiled kernels and tensor operations alike."""

import pytest
import torch
from chain_cases import INF, TOLERANCE, each_way, enumerate_posterior, paths_of, random_tables
from torch import Tensor, tensor

from pyro_em import chains
from pyro_em.chains import ChainTables, scan

SIZES = [
    {"frames": 1},
    {"frames": 2},
    {"states": 1},
    {"frames": 5, "states": 5, "rows": 2},
    {"groups": 2},
    {"groups": 4, "matrices": 3},
    {"groups": 2, "matrices": 1, "ragged": False},
    {"zeros": 0.3},
    {"zeros": 0.3, "groups": 4, "spread": 400.0},
    {"spread": 400.0},
    {"spread": 5000.0, "groups": 2},
    {"spread": 5000.0, "zeros": 0.5, "frames": 5},
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("seed", range(5))
@each_way
def test_posterior_and_evidence_equal_the_sum_over_paths(run, size, seed) -> None:
    tables = random_tables(seed, **size)
    weights = torch.rand(len(tables.emission), dtype=torch.float64)
    evidence, marginal, pairwise = enumerate_posterior(tables, weights)
    filtered = run.forward(tables)
    smoothed = run.backward(filtered, weights)
    torch.testing.assert_close(filtered.log_evidence, evidence, **TOLERANCE)
    torch.testing.assert_close(smoothed.marginal, marginal, **TOLERANCE)
    torch.testing.assert_close(smoothed.pairwise, pairwise, **TOLERANCE)


@pytest.mark.parametrize("size", SIZES, ids=str)
@each_way
def test_filtering_and_prediction_are_evidence_of_shorter_chains(run, size) -> None:
    tables = random_tables(7, **{**size, "ragged": False})
    filtered = run.forward(tables)
    ones = torch.ones(len(tables.emission), dtype=torch.float64)
    predicted = run.predict_next(filtered)
    for t in range(tables.emission.shape[1]):
        frames = torch.full((len(ones),), t + 1)
        shorter = ChainTables(tables.emission, tables.transition, tables.which, frames)
        _, marginal, _ = enumerate_posterior(shorter, ones)
        torch.testing.assert_close(filtered.alpha[:, t], marginal[:, t], **TOLERANCE)
        if t > 0:
            blind = tables.emission.clone()
            blind[:, t] = 0.0
            shorter = ChainTables(blind, tables.transition, tables.which, frames)
            evidence, marginal, _ = enumerate_posterior(shorter, ones)
            # A row that is impossible in this very frame still has a prediction; one that was before has none.
            known = (evidence > -INF) & (filtered.alpha[:, t].sum(-1) > 0)
            torch.testing.assert_close(predicted[known, t - 1], marginal[known, t], **TOLERANCE)


@pytest.mark.parametrize("size", SIZES, ids=str)
@each_way
def test_viterbi_is_the_best_of_all_paths(run, size) -> None:
    tables = random_tables(3, **size)
    states, score = run.viterbi(tables)
    for r in range(len(states)):
        paths, total = paths_of(tables, r)
        length = paths.shape[1]
        torch.testing.assert_close(score[r], total.max(), **TOLERANCE)
        assert not states[r, length:].any()
        if length and total.max() > -INF:
            assert states[r, :length].tolist() == paths[total.argmax()].tolist()


@each_way
def test_viterbi_prefers_the_lowest_state_in_a_tie(run) -> None:
    zeros = torch.zeros(1, 4, 3, dtype=torch.float64)
    transition = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    transition[0, 0, 0, 0] = -1.0  # 0 0 is worse, and the best last state 0 is reached from 1
    states, score = run.viterbi(ChainTables(zeros, transition, torch.zeros(3, dtype=torch.int64)))
    assert states.tolist() == [[1, 0, 1, 0]]
    assert score.tolist() == [0.0]


@pytest.mark.parametrize("size", [{}, {"groups": 2, "zeros": 0.3}, {"spread": 400.0, "zeros": 0.3}], ids=str)
@each_way
def test_draws_have_the_frequencies_of_the_posterior(run, size) -> None:
    tables = random_tables(11, frames=3, **size)
    n = 4000
    uniforms = torch.rand(
        n, *tables.emission.shape[:2], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    drawn = run.sample(run.forward(tables), uniforms)
    for r in range(len(tables.emission)):
        paths, total = paths_of(tables, r)
        length = paths.shape[1]
        assert not drawn[:, r, length:].any()
        if length == 0 or total.max() == -INF:
            assert not drawn[:, r].any()
            continue
        posterior = total.softmax(0)
        counts = (drawn[:, r, None, :length] == paths).all(-1).sum(0)
        assert counts.sum() == n
        assert ((counts - n * posterior).abs() <= 4.5 * (n * posterior * (1 - posterior)).sqrt() + 1e-6).all()


@each_way
def test_a_draw_depends_on_the_uniforms_of_its_row_only(run) -> None:
    tables = random_tables(5, frames=6, ragged=False)
    uniforms = torch.rand(10, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = run.sample(run.forward(tables), uniforms)
    uniforms[:, 1:] = 0.5
    alone = run.sample(run.forward(tables), uniforms)
    assert torch.equal(drawn[:, 0], alone[:, 0])
    assert not torch.equal(drawn, alone)


def test_compiled_and_tensor_draws_are_the_same() -> None:
    tables = random_tables(5, frames=50, rows=8, groups=2)
    uniforms = torch.rand(3, 8, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    compiled = chains.sample(chains.forward(tables), uniforms)
    assert torch.equal(compiled, scan.sample(scan.forward(tables), uniforms))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@each_way
def test_extreme_uniforms_draw_possible_states(run, uniform) -> None:
    emission = tensor([[[-INF, 0.1, 0.2, -INF]] * 3], dtype=torch.float64)
    tables = ChainTables(emission, torch.zeros(1, 1, 4, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    drawn = run.sample(run.forward(tables), torch.full((1, 1, 3), uniform, dtype=torch.float64))
    assert drawn.flatten().tolist() == ([1, 1, 1] if uniform == 0.0 else [2, 2, 2])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_gradient_is_right_for_any_weights(groups) -> None:
    tables = random_tables(2, groups=groups)
    emission, transition = tables.emission.requires_grad_(), tables.transition.requires_grad_()

    def evidence(emission: Tensor, transition: Tensor) -> Tensor:
        return chains.log_evidence(emission, transition, tables.which, tables.lengths)

    assert torch.autograd.gradcheck(evidence, (emission, transition))
    weights = tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    found = torch.autograd.grad((weights * evidence(emission, transition)).sum(), (emission, transition))
    _, *wanted = enumerate_posterior(
        ChainTables(emission.detach(), transition.detach(), tables.which, tables.lengths), weights
    )
    torch.testing.assert_close(list(found), wanted, **TOLERANCE)


def test_the_gradient_of_an_impossible_row_is_zero() -> None:
    emission = torch.zeros(2, 3, 2, dtype=torch.float64)
    emission[1, 1] = -INF
    emission.requires_grad_()
    evidence = chains.log_evidence(
        emission, torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    )
    (grad,) = torch.autograd.grad(evidence.sum(), emission)
    assert evidence[1] == -INF and not grad[1].any()
    torch.testing.assert_close(grad[0], torch.full((3, 2), 0.5, dtype=torch.float64))


def test_a_second_derivative_is_refused_even_beside_terms_that_have_one() -> None:
    tables = random_tables(2)
    emission = tables.emission.requires_grad_()
    value = chains.log_evidence(emission, tables.transition, tables.which, tables.lengths).sum() + (emission**2).sum()
    (grad,) = torch.autograd.grad(value, emission, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        grad.sum().backward()
