"""The compiled pass over a small mixture, against the same sums by tensor operations."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_em.compiled import sweep
from pyro_em.compiled.mixture_kernel import _logarithm as logarithm
from pyro_em.compiled.mixture_kernel import add_rows, soften
from pyro_em.compiled.sweep import POWERS, Sweep

ONE = np.ones(1)


def case(num, width, states, dtype=torch.float64, powers=1):
    """Data (n, D), coefficients (K, powers D), constants (K, 1)."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(num, width, generator=generator, dtype=torch.float64).to(dtype)
    return data, *(torch.randn(states, n, generator=generator, dtype=torch.float64) for n in (powers * width, 1))


def by_kernel(data: Tensor, matrix: Tensor, offset: Tensor, weights=ONE, origin=None):
    sums, counts = np.zeros(tuple(matrix.shape)), np.zeros(len(matrix))
    origin, powers = np.zeros(data.shape[1]) if origin is None else origin, matrix.shape[1] // data.shape[1]
    given = matrix.numpy(), offset[:, 0].numpy(), weights
    totals = np.zeros(2)
    for first, last in ((0, len(data) // 3), (len(data) // 3, len(data))):
        totals += add_rows(data.numpy(), origin, powers, first, last, *given, sums, counts)
    return torch.from_numpy(sums), torch.from_numpy(counts), torch.from_numpy(totals)


def by_tensors(data: Tensor, matrix: Tensor, offset: Tensor, weights=ONE, origin=None):
    about = data.double() if origin is None else data.double() - torch.from_numpy(origin)
    powers, weights = matrix.shape[1] // data.shape[1], torch.from_numpy(weights)
    features = torch.cat([about, about.square()][:powers], 1).T
    logs = matrix @ features + offset
    posterior, terms = logs.softmax(0) * weights, logs.logsumexp(0)
    totals = torch.stack([(terms * weights).sum(), terms.square().sum()])
    return posterior @ features.T, posterior.sum(1), totals


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("width", "states"), [(1, 1), (2, 3), (5, 4), (32, 10)])
@pytest.mark.parametrize("num", [2, 127, 128, 129, 1000])
@pytest.mark.parametrize("powers", [1, 2])
def test_sums_are_those_of_tensor_operations(num, width, states, dtype, powers):
    work, origin = case(num, width, states, dtype, powers), np.linspace(-0.5, 0.7, width)
    found, expected = by_kernel(*work, origin=origin), by_tensors(*work, origin=origin)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("states", [1, 3, 40])
@pytest.mark.parametrize("num", [1, 127, 128, 129, 1000])
def test_posteriors_in_place_of_log_densities(num, states, weighted):
    generator = torch.Generator().manual_seed(num)
    logs = 300 * torch.randn(states, num, generator=generator, dtype=torch.float64)
    logs[1:, ::5], logs[:, ::7] = -torch.inf, logs[:, ::7] - 1e30
    weights = torch.rand(num, generator=generator, dtype=torch.float64) if weighted else torch.ones(1).double()
    found = logs.clone()
    evidence, squares = soften(found.numpy(), weights.numpy())
    torch.testing.assert_close(found, logs.softmax(0) * weights, rtol=1e-13, atol=1e-300)
    terms = logs.logsumexp(0)
    assert evidence == pytest.approx(float((terms * weights).sum()), rel=1e-13)
    assert squares == pytest.approx(float(terms.dot(terms)), rel=1e-13)


def test_data_without_density_under_any_state():
    """As by tensor operations, they are not a number, and leave their neighbours alone."""
    logs = torch.zeros(2, 3, dtype=torch.float64)
    logs[:, 1] = -torch.inf
    evidence, _ = soften(logs.numpy(), ONE)
    assert math.isnan(evidence) and logs.isnan().any(0).tolist() == [False, True, False]


def test_tiles_of_many_states_are_whole():
    """However little room is left for data."""
    work = case(333, 40, 90, powers=2)
    torch.testing.assert_close(by_kernel(*work), by_tensors(*work), rtol=1e-11, atol=1e-11, check_dtype=False)


def test_data_count_by_their_weights():
    work, weights = case(300, 4, 3), np.random.default_rng(0).uniform(0, 2, 300)
    weights[::7] = 0.0
    found, expected = by_kernel(*work, weights), by_tensors(*work, weights)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, check_dtype=False)


def test_an_impossible_state_takes_nothing():
    data, matrix, offset = case(200, 2, 3)
    offset[1] = -1e30
    _, counts, totals = by_kernel(data, matrix, offset)
    assert counts[1] == 0.0 and counts.sum() == pytest.approx(200.0)
    rest = by_kernel(data, matrix[[0, 2]], offset[[0, 2]])
    torch.testing.assert_close(totals, rest[2], rtol=1e-14, atol=0)


def test_a_datum_that_is_impossible_under_all_states_shows_in_the_evidence():
    data, matrix, offset = case(200, 2, 3)
    data[:, 0], matrix[:, 0] = 0.0, -1e30
    data[130, 0] = 1.0
    assert by_kernel(data, matrix, offset)[2][0] < -1e29


@pytest.mark.parametrize("where", [0, 130, 199])
def test_what_is_not_a_number_is_not_lost(where):
    data, matrix, offset = case(200, 2, 3)
    data[where, 1] = math.nan
    assert all(bool(found.isnan().any()) for found in by_kernel(data, matrix, offset))


def test_logarithm():
    x = np.concatenate([1 + np.logspace(-15, 300, 4000), np.linspace(1, 64, 4001), [1.0, np.inf, np.nan]])
    found = x.copy()
    logarithm(found)
    np.testing.assert_array_max_ulp(found[:-3], np.log(x[:-3]), maxulp=3)
    assert found[-3] == 0.0 and found[-2] == np.inf and np.isnan(found[-1])


@pytest.mark.parametrize("family", POWERS, ids=lambda kind: kind.__name__)
def test_features_made_in_tiles_are_those_of_the_family(family):
    x = torch.tensor([0.0, 1.0, 2.5, 7.0], dtype=torch.float64)
    assert torch.equal(family().features(x), torch.stack([x, x.square()][: POWERS[family]]))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_rows(threads, monkeypatch):
    monkeypatch.setattr(sweep, "LEAST_WORK", 1_000_000)
    data, matrix, offset = case(70_001, 7, 4, powers=2)
    sums, counts = torch.zeros_like(matrix), torch.zeros(4, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        totals = Sweep(data, torch.zeros(7, dtype=torch.float64), 2).add(
            matrix, offset[:, 0], torch.ones(1, dtype=torch.float64), sums, counts
        )
    finally:
        torch.set_num_threads(before)
    found = sums, counts, torch.tensor(totals, dtype=torch.float64)
    torch.testing.assert_close(found, by_tensors(data, matrix, offset), rtol=1e-11, atol=1e-9)
