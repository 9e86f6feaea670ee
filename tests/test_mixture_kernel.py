"""The compiled pass over a small mixture, against the same sums by tensor operations."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_em.compiled.mixture_kernel import _logarithm as logarithm
from pyro_em.compiled.mixture_kernel import add_rows

ONE = np.ones(1)


def case(num, width, states, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(width, num, generator=generator, dtype=torch.float64).to(dtype)
    return features, *(torch.randn(states, n, generator=generator, dtype=torch.float64) for n in (width, 1))


def by_kernel(features: Tensor, matrix: Tensor, offset: Tensor, weights=ONE):
    sums, counts = np.zeros(tuple(matrix.shape)), np.zeros(len(matrix))
    evidence, squares = add_rows(features.numpy(), matrix.numpy(), offset[:, 0].numpy(), weights, sums, counts)
    return torch.from_numpy(sums), torch.from_numpy(counts), torch.tensor([evidence, squares])


def by_tensors(features: Tensor, matrix: Tensor, offset: Tensor, weights=ONE):
    features, weights = features.double(), torch.from_numpy(weights)
    logs = matrix @ features + offset
    posterior, terms = logs.softmax(0) * weights, logs.logsumexp(0)
    totals = torch.stack([(terms * weights).sum(), terms.square().sum()])
    return posterior @ features.T, posterior.sum(1), totals


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("width", "states"), [(1, 1), (2, 3), (5, 4), (32, 10)])
@pytest.mark.parametrize("num", [2, 127, 128, 129, 1000])
def test_sums_are_those_of_tensor_operations(num, width, states, dtype):
    work = case(num, width, states, dtype)
    torch.testing.assert_close(by_kernel(*work), by_tensors(*work), rtol=1e-12, atol=1e-12, check_dtype=False)


def test_data_count_by_their_weights():
    work, weights = case(300, 4, 3), np.random.default_rng(0).uniform(0, 2, 300)
    weights[::7] = 0.0
    found, expected = by_kernel(*work, weights), by_tensors(*work, weights)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, check_dtype=False)


def test_an_impossible_state_takes_nothing():
    features, matrix, offset = case(200, 2, 3)
    offset[1] = -1e30
    _, counts, totals = by_kernel(features, matrix, offset)
    assert counts[1] == 0.0 and counts.sum() == pytest.approx(200.0)
    rest = by_kernel(features, matrix[[0, 2]], offset[[0, 2]])
    torch.testing.assert_close(totals, rest[2], rtol=1e-14, atol=0)


def test_a_datum_that_is_impossible_under_all_states_shows_in_the_evidence():
    features, matrix, offset = case(200, 2, 3)
    features[0], matrix[:, 0] = 0.0, -1e30
    features[0, 130] = 1.0
    assert by_kernel(features, matrix, offset)[2][0] < -1e29


@pytest.mark.parametrize("where", [0, 130, 199])
def test_what_is_not_a_number_is_not_lost(where):
    features, matrix, offset = case(200, 2, 3)
    features[1, where] = math.nan
    assert all(bool(found.isnan().any()) for found in by_kernel(features, matrix, offset))


def test_logarithm():
    x = np.concatenate([1 + np.logspace(-15, 300, 4000), np.linspace(1, 64, 4001), [1.0, np.inf, np.nan]])
    found = x.copy()
    logarithm(found)
    np.testing.assert_array_max_ulp(found[:-3], np.log(x[:-3]), maxulp=3)
    assert found[-3] == 0.0 and found[-2] == np.inf and np.isnan(found[-1])
