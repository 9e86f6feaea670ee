"""Seconds per EM iteration on counts: latent classes against StepMix, mixtures of multinomials against NumPy and SciPy.

The same data, start and iterations on both sides, in turns in one process, as in `bench_mixtures.py`, whose columns
these are. StepMix runs its own `em` with a clock in its hooks, which also put the start in place. For multinomials no
package has a common EM: the peers are written here, a product of the counts with log probabilities, a softmax and the
transposed product, in NumPy for dense counts and in SciPy for sparse ones. SciPy's sparse products use one thread,
however many there are.

Run by `make bench`, or `python tests/bench/bench_counts.py --threads 2`. Exits with an error where parameters differ by
more than 1e-6, relative, after any round.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from interleave import Array, Clock, Contest, Model, Params, Run, by_fit, launch, options_parser, run_contests, timed
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from stepmix.stepmix import StepMix
from torch import Tensor
from torch.distributions import constraints

ITEMS = (100_000, 20, 5)  # people, binary items, classes
WORDS = (20_000, 2_000, 20)  # documents, vocabulary, topics
LENGTH = 90  # words in a document on average: about 4 % of the vocabulary
FLOOR = np.finfo(np.float64).tiny  # of a probability in a logarithm: with few data, some words die out in a topic


def latent_class(start: Params) -> Model:
    """Binary items, independent within each class."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor(start["weights"]), constraint=constraints.simplex)
        probs = pyro.param("probs", torch.tensor(start["probs"]), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)

    return model


def topics(start: Params) -> Model:
    """A mixture of multinomials: every document is of one topic. `x` is dense, or sparse in CSR format."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor(start["weights"]), constraint=constraints.simplex)
        probs = pyro.param("probs", torch.tensor(start["probs"]), constraint=constraints.simplex)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Multinomial(probs=probs[z], validate_args=False), obs=x)

    return model


def simulate_items(N: int, J: int, K: int, seed: int = 0) -> tuple[Array, Params]:
    """Answers (N, J), zeros and ones in float64, and a start off the true values."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 1.0, (K, J))
    z = rng.choice(K, N, p=rng.dirichlet(np.full(K, 5.0)))
    x = (rng.random((N, J)) < 1 / (1 + np.exp(-logits[z]))).astype(np.float64)
    start = 0.7 * logits + 0.3 * rng.standard_normal((K, J))
    return x, {"weights": np.full(K, 1 / K), "probs": 1 / (1 + np.exp(-start))}


def simulate_words(N: int, V: int, K: int, seed: int = 0) -> tuple[sparse.csr_array, Params]:
    """Counts (N, V) of documents whose topics overlap, and a start off the true values."""
    rng = np.random.default_rng(seed)
    logits = 0.1 * rng.standard_normal(V) + 0.3 * rng.standard_normal((K, V))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    documents = np.repeat(np.arange(N), rng.poisson(LENGTH, N))
    z = rng.choice(K, N, p=rng.dirichlet(np.full(K, 30.0)))[documents]
    words = np.empty(len(documents), np.int64)
    for k in range(K):
        words[z == k] = rng.choice(V, int((z == k).sum()), p=probs[k])
    x = sparse.csr_array((np.ones(len(words)), (documents, words)), shape=(N, V))
    x.sum_duplicates()
    start = np.exp(0.8 * logits + 0.1 * rng.standard_normal((K, V)))
    return x, {"weights": np.full(K, 1 / K), "probs": start / start.sum(1, keepdims=True)}


class ClockedStepMix(Clock, StepMix):
    """StepMix with a clock in its hooks, started from `start` in place of random responsibilities."""

    start: Params

    def _initialize_parameters(self, X: Array, random_state: Any) -> None:
        super()._initialize_parameters(X, random_state)
        measurement = {"pis": self.start["probs"].copy()}
        self.set_parameters(
            {"weights": self.start["weights"].copy(), "measurement": measurement, "measurement_in": X.shape[1]}
        )
        self.ticks = [time.perf_counter()]


def by_stepmix(x: Array, params: Params, steps: int) -> Run:
    num_classes = len(params["weights"])
    lca = ClockedStepMix(num_classes, measurement="binary", abs_tol=0, rel_tol=0, max_iter=steps, progress_bar=0)
    lca.start = params
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        lca.fit(x)
    reached = lca.get_parameters()
    return Run(lca.ticks, {"weights": reached["weights"], "probs": reached["measurement"]["pis"]})


def multinomial_iteration(x: Any, params: Params) -> Params:
    """One iteration of EM by hand, with the log evidence but for its constant; `x` (N, V) is dense or sparse."""
    joint = x @ np.log(np.maximum(params["probs"], FLOOR)).T
    joint += np.log(params["weights"])
    top = joint.max(1, keepdims=True)
    joint -= top
    resp = np.exp(joint, out=joint)
    total = resp.sum(1, keepdims=True)
    resp /= total
    log_evidence = float(np.log(total).sum() + top.sum())
    if not np.isfinite(log_evidence):
        raise RuntimeError(f"The log evidence of the hand-written EM is {log_evidence}.")
    counts = resp.T @ x
    return {"weights": resp.mean(0), "probs": counts / counts.sum(1, keepdims=True)}


def by_hand(x: Any, params: Params, steps: int) -> Run:
    return timed(partial(multinomial_iteration, x), params, steps)


def items_contest(N: int, J: int, K: int) -> Contest:
    x, start = simulate_items(N, J, K)
    ours = partial(by_fit, latent_class(start), torch.from_numpy(x))
    return Contest(f"latent class {N} x {J}, K={K}", "StepMix", ours, partial(by_stepmix, x), start, 0.30)


def sparse_contest(N: int, V: int, K: int) -> Contest:
    x, start = simulate_words(N, V, K)
    parts = map(torch.from_numpy, (x.indptr, x.indices, x.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)
        data = torch.sparse_csr_tensor(*parts, size=x.shape, check_invariants=True)
    ours, theirs = partial(by_fit, topics(start), data), partial(by_hand, x)
    work = f"words {N} x {V}, {x.nnz / N / V:.1%}, K={K}"
    return Contest(work, "SciPy CSR", ours, theirs, start, 1.00)


def dense_contest(N: int, V: int, K: int) -> Contest:
    sparse_x, start = simulate_words(N, V, K)
    x = sparse_x.toarray()
    ours, theirs = partial(by_fit, topics(start), torch.from_numpy(x)), partial(by_hand, x)
    return Contest(f"words {N} x {V}, dense, K={K}", "NumPy", ours, theirs, start, 1.10, steps=10)


def contests(shrink: int) -> Iterator[tuple[str, Callable[[], Contest]]]:
    """All contests; a smaller vocabulary goes with fewer documents, lest words die out in a topic."""
    (people, items, classes), (documents, vocabulary, num_topics) = ITEMS, WORDS
    words = (documents // shrink, vocabulary // shrink, num_topics)
    yield "latent class", partial(items_contest, people // shrink, items, classes)
    yield "words dense", partial(dense_contest, *words)
    yield "words sparse", partial(sparse_contest, *words)


def bench(options: argparse.Namespace) -> bool:
    return run_contests(contests(options.shrink), options)


if __name__ == "__main__":
    launch(bench, options_parser(__doc__))
