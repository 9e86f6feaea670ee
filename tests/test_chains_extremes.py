"""Chains whose potentials leave the range of floating point, and long chains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from chain_cases import COMPILED, FEW, INF, TOLERANCE, each_way, enumerate_posterior, random_tables
from hmmlearn.hmm import CategoricalHMM
from torch import tensor

from pyro_em import chains
from pyro_em.chains import ChainTables, scan


def identity(states: int):
    return torch.eye(states, dtype=torch.float64).log()[None, None]


def left_to_right(states: int, stay: float = 0.9):
    matrix = stay * torch.eye(states, dtype=torch.float64)
    matrix += (1 - stay) * torch.diag(torch.ones(states - 1, dtype=torch.float64), 1)
    return matrix.log()[None, None]


def steps(frames: int):
    return torch.zeros(frames - 1, dtype=torch.int64)


@each_way
def test_a_state_that_underflows_comes_back(run) -> None:
    emission = tensor([[[0.0, -800.0], [-1600.0, 0.0]]], dtype=torch.float64)
    filtered = run.forward(ChainTables(emission, identity(2), steps(2)))
    smoothed = run.backward(filtered)
    torch.testing.assert_close(filtered.log_evidence, tensor([-800.0], dtype=torch.float64))
    torch.testing.assert_close(smoothed.marginal, tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64))
    torch.testing.assert_close(smoothed.pairwise, tensor([[[[0.0, 0.0], [0.0, 1.0]]]], dtype=torch.float64))
    drawn = run.sample(filtered, torch.full((1, 1, 2), 0.5, dtype=torch.float64))
    assert drawn.flatten().tolist() == [1, 1]


@pytest.mark.parametrize("distance", [100.0, 290.0, 599.0, 601.0, 700.0, 740.0, 1000.0, 5000.0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "matrix", [identity(3), left_to_right(3), torch.log(tensor([[[[1, 1e-130, 0.5]] * 3]]).double())]
)
@each_way
def test_frames_that_contradict_each_other(run, distance, sign, matrix) -> None:
    rng = torch.Generator().manual_seed(0)
    emission = distance * torch.randint(-1, 2, (4, 5, 3), generator=rng).double()
    emission[:, 1::2] *= sign
    emission += torch.rand(4, 5, 3, generator=rng, dtype=torch.float64)
    tables = ChainTables(emission, matrix, steps(5))
    evidence, marginal, pairwise = enumerate_posterior(tables, torch.ones(4, dtype=torch.float64))
    filtered = run.forward(tables)
    smoothed = run.backward(filtered)
    torch.testing.assert_close(filtered.log_evidence, evidence, **TOLERANCE)
    # Sums of potentials of thousands of nats are themselves rounded to 1e-12.
    torch.testing.assert_close(smoothed.marginal, marginal, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(smoothed.pairwise, pairwise, rtol=1e-9, atol=1e-9)


def test_only_rows_in_danger_leave_the_fast_path() -> None:
    emission = torch.zeros(3, 4, 2, dtype=torch.float64)
    emission[1, 2] = tensor([0.0, -700.0])
    fast = ChainTables(emission, torch.zeros(1, 1, 2, 2, dtype=torch.float64), steps(4))
    assert chains.forward(fast).log_rows.tolist() == []
    assert chains.forward(replace(fast, transition=identity(2))).log_rows.tolist() == [1]


@pytest.mark.parametrize("height", [100.0, 650.0, 1000.0, 1e6])
def test_states_out_of_reach_set_no_scale(height) -> None:
    emission = tensor([[[0.0, -1.0, -INF], [-1.0, 0.5, height], [0.25, 0.0, height]]])
    tables = ChainTables(emission, identity(3), steps(3))
    evidence, marginal, pairwise = enumerate_posterior(tables, torch.ones(1))
    filtered = chains.forward(tables)
    smoothed = chains.backward(filtered)
    assert not len(filtered.log_rows)
    torch.testing.assert_close(filtered.log_evidence, evidence, **TOLERANCE)
    torch.testing.assert_close(smoothed.marginal, marginal, **TOLERANCE)
    torch.testing.assert_close(smoothed.pairwise, pairwise, **TOLERANCE)


@pytest.mark.parametrize("offset", [-1e6, 1e6])
@each_way
def test_an_offset_of_a_frame_is_an_offset_of_the_evidence(run, offset) -> None:
    tables = random_tables(1, ragged=False)
    plain, shifted = run.forward(tables), run.forward(replace(tables, emission=tables.emission + offset))
    torch.testing.assert_close(shifted.log_evidence, plain.log_evidence + 4 * offset, rtol=1e-14, atol=0)
    torch.testing.assert_close(run.backward(shifted).marginal, run.backward(plain).marginal, rtol=0, atol=1e-8)


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
@each_way
def test_an_offset_of_a_matrix_is_an_offset_of_the_evidence(run, offset) -> None:
    tables = random_tables(1, ragged=False)
    plain, shifted = run.forward(tables), run.forward(replace(tables, transition=tables.transition + offset))
    torch.testing.assert_close(shifted.log_evidence, plain.log_evidence + 3 * offset, **TOLERANCE)
    torch.testing.assert_close(run.backward(shifted).pairwise, run.backward(plain).pairwise, **TOLERANCE)


@each_way
def test_transitions_far_below_one_another(run) -> None:
    transition = tensor([[[[0.0, -2000.0], [-3000.0, -1000.0]]]], dtype=torch.float64)
    emission = tensor([[[0.0, -1.0], [-9000.0, 0.0], [0.5, 0.0]]], dtype=torch.float64)
    tables = ChainTables(emission, transition, steps(3))
    evidence, marginal, pairwise = enumerate_posterior(tables, torch.ones(1, dtype=torch.float64))
    filtered = run.forward(tables)
    torch.testing.assert_close(filtered.log_evidence, evidence, **TOLERANCE)
    torch.testing.assert_close(run.backward(filtered).marginal, marginal, **TOLERANCE)
    torch.testing.assert_close(run.backward(filtered).pairwise, pairwise, **TOLERANCE)


@pytest.mark.parametrize("frame", [0, 1, 3])
@pytest.mark.parametrize("matrix", [identity(2), torch.zeros(1, 1, 2, 2, dtype=torch.float64)])
@each_way
def test_an_impossible_frame_makes_its_row_impossible(run, frame, matrix) -> None:
    emission = torch.zeros(3, 4, 2, dtype=torch.float64)
    emission[1, frame] = -INF
    emission[2, 0, 0] = -900.0  # under the identity, this row goes to log space
    filtered = run.forward(ChainTables(emission, matrix, steps(4)))
    smoothed = run.backward(filtered)
    assert (filtered.log_evidence == -INF).tolist() == [False, True, False]
    assert not smoothed.marginal[1].any() and not filtered.alpha[1, frame:].any()
    torch.testing.assert_close(smoothed.marginal[[0, 2]].sum(-1), torch.ones(2, 4, dtype=torch.float64))
    torch.testing.assert_close(smoothed.pairwise.sum(), tensor(6.0, dtype=torch.float64))
    for table in (filtered.alpha, run.predict_next(filtered)):
        assert not table.isnan().any()
    states, score = run.viterbi(filtered.tables)
    assert score[1] == -INF and not states[1].any()
    assert not run.sample(filtered, torch.full((2, 3, 4), 0.9, dtype=torch.float64))[:, 1].any()


@each_way
def test_a_path_that_transitions_forbid_is_impossible(run) -> None:
    emission = tensor([[[0.0, -INF], [-INF, 0.0]]], dtype=torch.float64)
    filtered = run.forward(ChainTables(emission, identity(2), steps(2)))
    assert filtered.log_evidence.item() == -INF
    assert not run.backward(filtered).pairwise.any()


@pytest.mark.parametrize("into", [-50.0, 0.0, 300.0, 2000.0])
@each_way
def test_states_that_pad_are_harmless(run, into) -> None:
    tables = random_tables(4, states=3, ragged=False)
    emission = torch.full((4, 4, 5), -INF, dtype=torch.float64)
    emission[..., :3] = tables.emission
    transition = torch.full((1, 2, 5, 5), into, dtype=torch.float64)
    transition[..., :3, :3] = tables.transition
    plain, padded = run.forward(tables), run.forward(replace(tables, emission=emission, transition=transition))
    torch.testing.assert_close(padded.log_evidence, plain.log_evidence, **TOLERANCE)
    smoothed = run.backward(padded)
    torch.testing.assert_close(smoothed.marginal[..., :3], run.backward(plain).marginal, **TOLERANCE)
    torch.testing.assert_close(smoothed.pairwise[..., :3, :3], run.backward(plain).pairwise, **TOLERANCE)
    assert not smoothed.marginal[..., 3:].any() and not smoothed.pairwise[..., 3:].any()


@pytest.mark.parametrize("where", ["emission", "transition"])
@pytest.mark.parametrize("matrix", [identity(2), torch.zeros(1, 1, 2, 2, dtype=torch.float64)])
@pytest.mark.parametrize("whole", [True, False])
@each_way
def test_what_is_not_a_number_is_not_hidden(run, where, matrix, whole) -> None:
    tables = ChainTables(torch.zeros(1, 3, 2, dtype=torch.float64), matrix.clone(), steps(3))
    table = getattr(tables, where)
    table[0, :, 0] = torch.nan
    if whole:
        table.fill_(torch.nan)
    assert run.forward(tables).log_evidence.isnan().all()


def test_a_long_chain_equals_hmmlearn() -> None:
    """Gold: hmmlearn 0.3.3, CategoricalHMM(implementation="log").score_samples and decode, on a made-up sequence."""
    rng = np.random.default_rng(0)
    peer = CategoricalHMM(6, implementation="log")
    peer.startprob_ = rng.dirichlet(np.ones(6))
    peer.transmat_, peer.emissionprob_ = rng.dirichlet(np.ones(6), 6), rng.dirichlet(np.ones(4), 6)
    data = rng.integers(4, size=(20_000, 1))
    emission = torch.from_numpy(np.log(peer.emissionprob_.T[data[:, 0]]))[None]
    emission[0, 0] += torch.from_numpy(np.log(peer.startprob_))
    tables = ChainTables(emission, torch.from_numpy(np.log(peer.transmat_))[None, None], steps(20_000))
    filtered = chains.forward(tables)
    smoothed = chains.backward(filtered)
    evidence, posterior = peer.score_samples(data)
    torch.testing.assert_close(filtered.log_evidence.item(), float(evidence), rtol=1e-11, atol=0)
    torch.testing.assert_close(smoothed.marginal[0], torch.from_numpy(posterior), rtol=0, atol=1e-9)
    torch.testing.assert_close(smoothed.marginal.sum(-1), torch.ones(1, 20_000, dtype=torch.float64), **TOLERANCE)
    torch.testing.assert_close(smoothed.pairwise.sum().item(), 19_999.0, **TOLERANCE)
    score, best = peer.decode(data)
    states, found = chains.viterbi(tables)
    assert (states[0].numpy() == best).mean() > 0.99  # equal observations leave ties to rounding
    torch.testing.assert_close(found.item(), float(score), rtol=1e-11, atol=0)


@pytest.mark.parametrize("states", [7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("zeros", [0.0, 0.1])
@pytest.mark.parametrize("run", [COMPILED, FEW], ids=["compiled", "few"])
def test_many_states_and_frames_equal_log_space(run, states, zeros) -> None:
    """The compiled loops take several states and frames at a time, and what is left over apart."""
    tables = random_tables(0, frames=90, states=states, groups=2, zeros=zeros, spread=5.0)
    filtered, wanted = run.forward(tables), scan.forward(tables)
    assert not len(filtered.log_rows)
    weights = tensor([1.0, 0.5, -2.0, 0.0])
    torch.testing.assert_close(filtered.log_evidence, wanted.log_evidence, **TOLERANCE)
    torch.testing.assert_close(filtered.alpha, wanted.alpha, **TOLERANCE)
    torch.testing.assert_close(chains.predict_next(filtered), scan.predict_next(wanted), **TOLERANCE)
    found, wanted = run.backward(filtered, weights), scan.backward(wanted, weights)
    torch.testing.assert_close(found.marginal, wanted.marginal, **TOLERANCE)
    torch.testing.assert_close(found.pairwise, wanted.pairwise, **TOLERANCE)
