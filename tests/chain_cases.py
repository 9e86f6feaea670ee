"""Small random chains, the sum over all their paths, and all implementations of what is asked of them."""

import itertools
from functools import wraps
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from pyro_em import chains
from pyro_em.chains import ChainTables, Filtered, few_kernel, scan

INF = torch.inf
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def scan_backward(filtered: Filtered, weights: Tensor | None = None):
    return scan.backward(filtered, torch.ones_like(filtered.log_evidence) if weights is None else weights)


def for_many(run):
    """A pass by the kernel that is there for many states, however few there are."""

    @wraps(run)
    def general(*args):
        with patch.object(few_kernel, "FEW", 0):
            return run(*args)

    return general


FEW = SimpleNamespace(
    forward=chains.forward,
    backward=chains.backward,
    viterbi=chains.viterbi,
    sample=chains.sample,
    predict_next=chains.predict_next,
)
COMPILED = SimpleNamespace(
    forward=for_many(chains.forward),
    backward=for_many(chains.backward),
    viterbi=chains.viterbi,
    sample=chains.sample,
    predict_next=chains.predict_next,
)
TENSORS = SimpleNamespace(
    forward=scan.forward,
    backward=scan_backward,
    viterbi=scan.viterbi,
    sample=scan.sample,
    predict_next=scan.predict_next,
)


each_way = pytest.mark.parametrize("run", [COMPILED, FEW, TENSORS], ids=["compiled", "few", "tensors"])


def random_tables(seed, rows=4, frames=4, states=3, matrices=2, groups=1, spread=1.0, zeros=0.0, ragged=True):
    rng = torch.Generator().manual_seed(seed)

    def table(*shape: int, scale: float) -> Tensor:
        values = scale * torch.randn(shape, generator=rng, dtype=torch.float64)
        return values.masked_fill(torch.rand(shape, generator=rng) < zeros, -INF)

    emission = table(rows, frames, states, scale=spread)
    transition = table(groups, matrices, states, states, scale=1.0)
    which = torch.randint(matrices, (frames - 1,), generator=rng)
    lengths = torch.randint(frames + 1, (rows,), generator=rng) if ragged else None
    return ChainTables(emission, transition, which, lengths)


def paths_of(tables: ChainTables, row: int) -> tuple[Tensor, Tensor]:
    """Every path of a row in lexicographic order, shape (P, length), and its log-potential."""
    length = int(tables.row_lengths()[row])
    paths = torch.tensor(list(itertools.product(range(tables.emission.shape[2]), repeat=length)))
    total = torch.zeros(len(paths), dtype=torch.float64)
    for t in range(length):
        total = total + tables.emission[row, t, paths[:, t]]
        if t > 0:
            matrix = tables.transition[row // tables.rows_per_group, tables.which[t - 1]]
            total = total + matrix[paths[:, t - 1], paths[:, t]]
    return paths, total


def enumerate_posterior(tables: ChainTables, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    evidence = torch.zeros_like(weights)
    marginal, pairwise = torch.zeros_like(tables.emission), torch.zeros_like(tables.transition)
    for r in range(len(weights)):
        paths, total = paths_of(tables, r)
        evidence[r] = total.logsumexp(0)
        if evidence[r] == -INF:
            continue
        posterior = weights[r] * (total - evidence[r]).exp()
        for t in range(paths.shape[1]):
            marginal[r, t].index_add_(0, paths[:, t], posterior)
        for t in range(paths.shape[1] - 1):
            matrix = pairwise[r // tables.rows_per_group, tables.which[t]]
            matrix.index_put_((paths[:, t], paths[:, t + 1]), posterior, accumulate=True)
    return evidence, marginal, pairwise
