"""How chains run: in threads and forks, from strided tables, in compiled functions; and what they refuse."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from chain_cases import INF, TOLERANCE, each_way, random_tables
from numba.core.dispatcher import Dispatcher
from torch import tensor

from pyro_em import chains
from pyro_em.chains import ChainTables, Filtered, few_kernel, kernel, log_kernel, paths, potentials


def large_tables() -> ChainTables:
    """Work for more than one thread, and rows of every kind: ragged, impossible, and done in log space."""
    tables = random_tables(0, rows=240, frames=400, states=7, matrices=2, groups=3)
    tables.emission[5, 3] = -INF
    tables.emission[7::20, 2, 1:] = -1500.0
    tables.transition[0, 0, :, 0] = -INF
    return tables


def outcome(tables: ChainTables) -> list[torch.Tensor]:
    filtered = chains.forward(tables)
    smoothed = chains.backward(filtered)
    return [filtered.log_evidence, filtered.alpha, smoothed.marginal, smoothed.pairwise, *chains.viterbi(tables)]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing(two_threads) -> None:
    tables = large_tables()
    parallel = outcome(tables)
    torch.set_num_threads(1)
    torch.testing.assert_close(parallel, outcome(tables), rtol=1e-12, atol=1e-12)


def _put_outcome(tables: ChainTables, queue) -> None:
    queue.put([x.numpy() for x in outcome(tables)])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_threads_survive_a_fork(two_threads) -> None:
    tables = large_tables()
    here = outcome(tables)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_put_outcome, args=(tables, queue), daemon=True)
    child.start()
    there = queue.get(timeout=60)
    child.join()
    torch.testing.assert_close([torch.from_numpy(x) for x in there], here, rtol=0, atol=0)


@each_way
def test_strided_tables_are_read_as_they_are_meant(run) -> None:
    tables = random_tables(6, groups=2)
    turned = replace(
        tables,
        emission=tables.emission.transpose(0, 2).contiguous().transpose(0, 2),
        transition=tables.transition.mT.contiguous().mT,
    )
    torch.testing.assert_close(run.forward(turned).log_evidence, run.forward(tables).log_evidence, **TOLERANCE)


@each_way
def test_smoothing_twice_is_the_same(run) -> None:
    filtered: Filtered = run.forward(random_tables(6))
    first = run.backward(filtered)
    torch.testing.assert_close(run.backward(filtered).pairwise, first.pairwise, rtol=0, atol=0)


def test_uneven_shapes_are_refused() -> None:
    good = random_tables(0, groups=2)
    for change, message in [
        ({"emission": good.emission[0]}, r"need emission of shape \(R, T, S\)"),
        ({"transition": good.transition[..., :2]}, r"need transition of shape \(G, M, 3, 3\) where G divides 4"),
        ({"transition": good.transition[:1].expand(3, -1, -1, -1)}, "where G divides 4"),
        ({"which": good.which[:1]}, r"need which of shape \(3,\), not \(1,\)"),
        ({"which": tensor([0, 2, 1])}, r"need which in 0\.\.1, not in 0\.\.2"),
        ({"which": tensor([0, -1, 1])}, r"need which in 0\.\.1, not in -1\.\.1"),
        ({"lengths": tensor([1, 2, 3, 5])}, r"need lengths in 0\.\.4, not in 1\.\.5"),
        ({"lengths": tensor([1, 2, 3])}, r"need lengths of shape \(4,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(good, **change)
    with pytest.raises(TypeError, match=r"need emission as torch\.float64"):
        replace(good, emission=good.emission.float())
    with pytest.raises(TypeError, match=r"need lengths as torch\.int64"):
        replace(good, lengths=torch.ones(4))


def test_weights_and_uniforms_of_other_chains_are_refused() -> None:
    filtered = chains.forward(random_tables(0))
    with pytest.raises(ValueError, match=r"need weights of shape \(4,\)"):
        chains.backward(filtered, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"need uniforms of shape \(2, 4, 4\)"):
        chains.sample(filtered, torch.rand(2, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("module", [few_kernel, kernel, log_kernel, paths, potentials])
def test_compiled_functions_call_those_of_their_own_file_only(module) -> None:
    """numba looks for changes in the file of the function that is called, and would go on running an old callee."""
    compiled = [x for x in vars(module).values() if isinstance(x, Dispatcher)]
    assert compiled
    assert all(x.py_func.__module__ == module.__name__ for x in compiled)


def test_exponentials_are_right_to_the_last_digit() -> None:
    x = torch.cat([-708 * torch.rand(10_000), -torch.rand(10_000), tensor([0.0, -708.0, -709.0, -1e300, -INF])])
    tables = ChainTables(
        torch.stack([x, torch.zeros_like(x)], -1)[None],
        torch.zeros(1, 1, 2, 2),
        torch.zeros(len(x) - 1, dtype=torch.int64),
    )
    ratio, evidence = np.empty((1, len(x), 2)), np.empty(1)
    potentials.scale_emissions(0, 1, tables.emission.numpy(), tables.row_lengths().numpy(), ratio, evidence)
    wanted = x.exp().where(x >= -708, 0.0).numpy()
    np.testing.assert_allclose(ratio[0, :, 0], wanted, rtol=4e-16, atol=0)
    assert (ratio[0, :, 1] == 1).all()
