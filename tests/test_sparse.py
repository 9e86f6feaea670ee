"""Counts in compressed rows: their products, and fits to them, against those of the same counts as a dense matrix."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions.constraints import simplex

from pyro_em import EM, fit
from pyro_em.compiled.sparse_kernel import add_transposed, multiply_rows
from pyro_em.errors import ModelError

N, V, K = 90, 12, 3


def counts():
    generator = torch.Generator().manual_seed(0)
    dense = torch.poisson(torch.rand(N, V, generator=generator, dtype=torch.float64), generator=generator)
    dense[5] = 0.0  # a document without words
    return dense


def compressed(dense):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)
        return dense.to_sparse_csr()


def arrays(x):
    return x.crow_indices().numpy(), x.col_indices().numpy(), x.values().numpy()


def topics(x):
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(K, V, generator=generator, dtype=torch.float64)
    weights = pyro.param("weights", torch.full((K,), 1 / K, dtype=torch.float64), constraint=simplex)
    probs = pyro.param("probs", start / start.sum(1, keepdim=True), constraint=simplex)
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Multinomial(probs=probs[z], validate_args=False), obs=x)


@pytest.mark.parametrize(("first", "stop"), [(0, N), (0, 6), (5, 6), (40, N)])
@pytest.mark.parametrize("states", [1, 3, 20])
def test_products_are_those_of_the_dense_matrix(first, stop, states):
    x, generator = counts(), np.random.default_rng(0)
    matrix, offset = generator.standard_normal((V, states)), generator.standard_normal(states)
    out, weights, sums = (
        np.empty((stop - first, states)),
        generator.random((stop - first, states)),
        np.ones((V, states)),
    )
    multiply_rows(first, *arrays(compressed(x)), matrix, offset, out)
    add_transposed(first, *arrays(compressed(x)), weights, sums)
    own = x[first:stop].numpy()
    np.testing.assert_allclose(out, own @ matrix + offset, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums, 1 + own.T @ weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [None, torch.arange(N, dtype=torch.float64) / N], ids=["plain", "weighted"])
def test_a_fit_is_that_of_the_dense_matrix(weights):
    x = counts()
    sparse, dense = (
        fit(topics, data, strategy=EM(max_steps=20, tol=0), weights=weights, seed=0, progress=False)
        for data in (compressed(x), x)
    )
    torch.testing.assert_close(sparse.params, dense.params, rtol=1e-9, atol=1e-12)
    assert sparse.log_evidence == pytest.approx(dense.log_evidence, rel=1e-11)


def test_columns_beyond_the_matrix_are_refused():
    x = compressed(counts())
    columns = x.col_indices().clone()
    columns[-1] = V
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)
        bad = torch.sparse_csr_tensor(x.crow_indices(), columns, x.values(), x.shape, check_invariants=False)
    with pytest.raises(ModelError, match="indices from 0 to 12"):
        fit(topics, bad, strategy=EM(), progress=False)
