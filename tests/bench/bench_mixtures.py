"""Seconds per EM iteration of Gaussian mixtures: `fit` against scikit-learn, and against JAX for the record.

The same data, start and iterations on both sides, in turns in one process; a row shows medians over rounds of each
round's median, and of the rounds' ratios. An iteration is one E-step, one M-step and the log evidence on both sides.
What is not an iteration is apart: "start" is `fit` up to the end of its first E-step (trace, checks, graph), "first"
the same for the first fit of a row, "around" all of the call that is not an iteration. scikit-learn runs its own `fit`
with `reg_covar=0` and the start given; a clock in its two hooks leaves out its initialisation and last E-step. JAX is
a hand-written, jitted iteration of two matrix products, components first or data first, whichever is faster here.

Run by `make bench`, or `python tests/bench/bench_mixtures.py --threads 2`. Exits with an error where parameters in
float64 differ by more than 1e-6, relative, after any round; in float32 the difference is only shown.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from interleave import (
    Array,
    Clock,
    Contest,
    Model,
    Params,
    Run,
    Side,
    by_fit,
    launch,
    options_parser,
    run_contests,
    timed,
)
from scipy.linalg import solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import constraints

SPREAD = 3.0  # of component means, in scales: neighbours overlap a little in any dimension
CHUNK = 65536


@dataclass(frozen=True)
class Work:
    """A mixture of K components on N data of D features, and the target for it."""

    covariance: str
    N: int
    D: int
    K: int
    dtype: str
    target: float
    steps: int

    @property
    def name(self) -> str:
        return f"{self.covariance} {self.dtype} {self.N:.0e} x {self.D}, K={self.K}".replace("e+0", "e")


WORKS = (
    Work("diagonal", 10_000, 2, 3, "float64", 0.30, 20),
    Work("diagonal", 100_000, 16, 10, "float64", 0.35, 10),
    Work("diagonal", 1_000_000, 16, 10, "float64", 0.30, 4),
    Work("diagonal", 100_000, 64, 32, "float64", 0.40, 4),
    Work("diagonal", 10_000, 2, 3, "float32", 0.35, 20),
    Work("diagonal", 100_000, 16, 10, "float32", 0.40, 10),
    Work("diagonal", 1_000_000, 16, 10, "float32", 0.45, 4),
    Work("diagonal", 100_000, 64, 32, "float32", 0.70, 4),
    Work("full", 10_000, 2, 3, "float64", 0.40, 20),
    Work("full", 100_000, 16, 10, "float64", 0.45, 4),
    Work("full", 100_000, 64, 32, "float64", 0.55, 4),
)
FOR_THE_RECORD = Work("diagonal", 100_000, 16, 10, "float32", 1.00, 20)


def diagonal(start: Params) -> Model:
    """A Gaussian mixture with a diagonal covariance per component."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor(start["weights"]), constraint=constraints.simplex)
        locs = pyro.param("locs", torch.tensor(start["locs"]))
        scales = pyro.param("scales", torch.tensor(start["scales"]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scales[z]).to_event(1), obs=x)

    return model


def full(start: Params) -> Model:
    """A Gaussian mixture with a full covariance per component."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor(start["weights"]), constraint=constraints.simplex)
        locs = pyro.param("locs", torch.tensor(start["locs"]))
        trils = pyro.param("trils", torch.tensor(start["trils"]), constraint=constraints.lower_cholesky)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=trils[z]), obs=x)

    return model


def simulate(N: int, D: int, K: int, dtype: str = "float64", seed: int = 0) -> tuple[Array, Params]:
    """Data (N, D) from K components that overlap a little, and a start off their true values; in place, by chunks."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(K, 5.0))
    locs = SPREAD / np.sqrt(D) * rng.standard_normal((K, D))
    scales = rng.uniform(0.6, 1.4, (K, D))
    x = np.empty((N, D), dtype)
    for low in range(0, N, CHUNK):
        rows = x[low : low + CHUNK]
        z = rng.choice(K, len(rows), p=weights)
        rows[:] = locs[z] + scales[z] * rng.standard_normal(rows.shape)
    start = {
        "weights": np.full(K, 1 / K),
        "locs": locs + 0.5 * scales * rng.standard_normal((K, D)),
        "scales": 1.2 * scales,
    }
    return x, {name: value.astype(dtype) for name, value in start.items()}


def full_start(start: Params) -> Params:
    scales = start["scales"]
    return {"weights": start["weights"], "locs": start["locs"], "trils": scales[:, :, None] * np.eye(scales.shape[1])}


class ClockedMixture(Clock, GaussianMixture):
    """scikit-learn's mixture with a clock in its hooks."""


def sklearn_run(x: Array, gm: ClockedMixture) -> ClockedMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return gm.fit(x)


def by_sklearn_diagonal(x: Array, params: Params, steps: int) -> Run:
    weights, locs, scales = params["weights"], params["locs"], params["scales"]
    shared = {"reg_covar": 0, "tol": 0, "max_iter": steps, "init_params": "random"}
    start = {"weights_init": weights, "means_init": locs, "precisions_init": scales**-2}
    gm = sklearn_run(x, ClockedMixture(len(weights), covariance_type="diag", **shared, **start))
    return Run(gm.ticks, {"weights": gm.weights_, "locs": gm.means_, "scales": np.sqrt(gm.covariances_)})


def by_sklearn_full(x: Array, params: Params, steps: int) -> Run:
    weights, locs, trils = params["weights"], params["locs"], params["trils"]
    inverses = [solve_triangular(tril, np.eye(len(tril)), lower=True) for tril in trils]
    precisions = np.stack([inverse.T @ inverse for inverse in inverses])
    shared = {"reg_covar": 0, "tol": 0, "max_iter": steps, "init_params": "random"}
    start = {"weights_init": weights, "means_init": locs, "precisions_init": precisions}
    gm = sklearn_run(x, ClockedMixture(len(weights), covariance_type="full", **shared, **start))
    return Run(gm.ticks, {"weights": gm.weights_, "locs": gm.means_, "trils": np.linalg.cholesky(gm.covariances_)})


def contest(work: Work) -> Contest:
    x, start = simulate(work.N, work.D, work.K, work.dtype)
    if work.covariance == "full":
        start, model, theirs = full_start(start), full, by_sklearn_full
    else:
        model, theirs = diagonal, by_sklearn_diagonal
    ours = partial(by_fit, model(start), torch.from_numpy(x))
    exact = work.dtype == "float64"
    return Contest(
        work.name, "scikit-learn", ours, partial(theirs, x), start, work.target, steps=work.steps, exact=exact
    )


def by_jax(x: Array, start: Params) -> Side:
    """EM by two matrix products in JAX, in the faster of two layouts: components along axis 0, or along axis 1."""
    import jax
    import jax.numpy as jnp

    @partial(jax.jit, static_argnames="axis")
    def iteration(data: jax.Array, p: dict[str, jax.Array], axis: int) -> tuple[dict[str, jax.Array], jax.Array]:
        precisions, squares = p["scales"] ** -2, data * data
        constant = jnp.log(p["weights"]) - (0.5 * p["locs"] ** 2 * precisions + jnp.log(p["scales"])).sum(1)
        linear, quadratic = p["locs"] * precisions, -0.5 * precisions
        if axis == 0:
            logits = linear @ data.T + quadratic @ squares.T + constant[:, None]
        else:
            logits = data @ linear.T + squares @ quadratic.T + constant
        top = logits.max(axis, keepdims=True)
        joint = jnp.exp(logits - top)
        total = joint.sum(axis, keepdims=True)
        resp = joint / total if axis == 0 else (joint / total).T
        counts = resp.sum(1)
        locs = resp @ data / counts[:, None]
        scales = jnp.sqrt(resp @ squares / counts[:, None] - locs**2)
        return {"weights": counts / len(data), "locs": locs, "scales": scales}, (jnp.log(total) + top).sum()

    data = jnp.asarray(x)

    def run(axis: int, params: Params, steps: int) -> Run:
        at = {name: jnp.asarray(value) for name, value in params.items()}
        done = timed(lambda p: jax.block_until_ready(iteration(data, p, axis))[0], at, steps)
        return Run(done.ticks, {name: np.array(value) for name, value in done.params.items()})

    sides = [partial(run, axis) for axis in (0, 1)]
    for side in sides:
        side(start, 1)
    return min(sides, key=lambda side: side(start, 10).seconds_per_iteration)


def against_jax(work: Work) -> Contest:
    x, start = simulate(work.N, work.D, work.K, work.dtype)
    ours = partial(by_fit, diagonal(start), torch.from_numpy(x))
    return Contest(work.name, "JAX", ours, by_jax(x, start), start, work.target, steps=work.steps, exact=False)


def contests(shrink: int) -> Iterator[tuple[str, Callable[[], Contest]]]:
    for work in WORKS:
        small = replace(work, N=work.N // shrink)
        yield small.name, partial(contest, small)
    last = replace(FOR_THE_RECORD, N=FOR_THE_RECORD.N // shrink)
    if find_spec("jax"):
        yield last.name, partial(against_jax, last)
    else:
        print(f"{last.name:<34}skipped: jax is not installed")


def bench(options: argparse.Namespace) -> bool:
    return run_contests(contests(options.shrink), options)


if __name__ == "__main__":
    launch(bench, options_parser(__doc__))
