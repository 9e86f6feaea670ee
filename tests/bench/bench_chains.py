"""Seconds per EM iteration of hidden Markov models: `fit` against hmmlearn, dynamax and a step of Pyro's SVI.

The same data, start and iterations on both sides, in turns in one process (see interleave.py); Gaussian emissions of
D = 4 features with a scale for each. The series of a thousand steps is a loop of `pyro.markov`; longer ones are
`DiscreteHMM` sites, whose state before the first datum hmmlearn is given as a row without information. dynamax, if it
is installed, runs its own E- and M-step, jitted, in float64 with flat priors.

The last row is a whole `fit` of a loop of two thousand steps, from call to result at fifty iterations, in the time of
one enumerated trace of that model with its log-probabilities, which any step of Pyro's SVI makes.

"start" is `fit` up to the end of its first E-step, traces of the program included.

Run by `make bench`, or `python tests/bench/bench_chains.py --threads 1`. Exits with an error where parameters differ by
more than 1e-6, relative, after any round.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from hmmlearn.hmm import GaussianHMM
from interleave import Array, Contest, Model, Params, Run, by_fit, launch, options_parser, run_contests
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import constraints

D = 4
SERIES = (
    (1_000, 5, 1.00, 20),
    (10_000, 16, 0.45, 20),
    (100_000, 5, 0.60, 10),
    (100_000, 16, 0.40, 4),
    (100_000, 64, 0.30, 2),
)
MANY = (1000, 100, 8)
ITERATIONS = 50


def parameters(start: Params) -> tuple[Tensor, ...]:
    init = pyro.param("init", torch.tensor(start["init"]), constraint=constraints.simplex)
    trans = pyro.param("trans", torch.tensor(start["trans"]), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor(start["locs"]))
    scales = pyro.param("scales", torch.tensor(start["scales"]), constraint=constraints.positive)
    return init, trans, locs, scales


def loop(start: Params) -> Model:
    """A series (T, D), or series in a plate (N, T, D), step by step."""

    def model(x: Tensor) -> None:
        init, trans, locs, scales = parameters(start)
        x = x if x.dim() == 3 else x.unsqueeze(0)
        with pyro.plate("sequences", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], scales[z]).to_event(1), obs=x[:, t])

    return model


def whole(start: Params) -> Model:
    """A series (T, D) as one site."""

    def model(x: Tensor) -> None:
        init, trans, locs, scales = parameters(start)
        pyro.sample("x", dist.DiscreteHMM(init.log(), trans.log(), dist.Normal(locs, scales).to_event(1)), obs=x)

    return model


def simulate(num: int, T: int, K: int, seed: int = 0) -> tuple[Array, Params]:
    """Series (num, T, D) from states that stay for ten steps on average, and a start off their true values."""
    rng = np.random.default_rng(seed)
    locs = 2.0 * rng.standard_normal((K, D))
    stays = rng.random((T, num)) < 0.9
    jumps = rng.integers(K, size=(T, num))
    z = np.empty((T, num), int)
    z[0] = jumps[0]
    for t in range(1, T):
        z[t] = np.where(stays[t], z[t - 1], jumps[t])
    x = locs[z.T] + rng.standard_normal((num, T, D))
    trans = np.full((K, K), 0.2 / K) + 0.8 * np.eye(K)
    start = {
        "init": np.full(K, 1 / K),
        "trans": trans / trans.sum(1, keepdims=True),
        "locs": locs + 0.3 * rng.standard_normal((K, D)),
        "scales": np.full((K, D), 1.2),
    }
    return x, start


class Clocked(GaussianHMM):
    """hmmlearn's model with a clock in its hooks; a first row of zeros, if `silent`, is no datum."""

    silent = False

    def _check(self) -> None:
        super()._check()
        self.ticks = [time.perf_counter()]

    def _compute_log_likelihood(self, X: Array) -> Array:
        found = super()._compute_log_likelihood(X)
        if self.silent:
            found[0] = 0.0
        return found

    def _accumulate_sufficient_statistics(
        self, stats: dict, X: Array, lattice: Array, posteriors: Array, *rest: Array
    ) -> None:
        super()._accumulate_sufficient_statistics(stats, X, lattice, posteriors, *rest)
        if self.silent:
            stats["post"] -= posteriors[0]

    def _do_mstep(self, stats: dict) -> None:
        super()._do_mstep(stats)
        self.ticks.append(time.perf_counter())


def by_hmmlearn(x: Array, silent: bool, params: Params, steps: int) -> Run:
    flat = {"covars_prior": 0, "covars_weight": 0, "means_prior": 0, "means_weight": 0, "min_covar": 0}
    hmm = Clocked(
        len(params["init"]), "diag", implementation="scaling", n_iter=steps, tol=-np.inf, init_params="", **flat
    )
    hmm.silent = silent
    hmm.startprob_, hmm.transmat_ = params["init"], params["trans"]
    hmm.means_, hmm.covars_ = params["locs"], params["scales"] ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hmm.fit(x)
    scales = np.sqrt(np.diagonal(hmm.covars_, axis1=1, axis2=2))
    return Run(hmm.ticks, {"init": hmm.startprob_, "trans": hmm.transmat_, "locs": hmm.means_, "scales": scales})


def series(T: int, K: int, target: float, steps: int) -> Contest:
    x, start = simulate(1, T, K)
    silent = T > 1_000
    rows = np.concatenate([np.zeros((1, D)), x[0]]) if silent else x[0]
    ours = partial(by_fit, (whole if silent else loop)(start), torch.from_numpy(x[0]))
    return Contest(series_name(T, K), "hmmlearn", ours, partial(by_hmmlearn, rows, silent), start, target, steps)


def series_name(T: int, K: int) -> str:
    return f"series of {T:.0e}, K={K}".replace("e+0", "e")


def by_dynamax(x: Array, params: Params, steps: int) -> Run:
    import jax
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import DiagonalGaussianHMM

    jax.config.update("jax_enable_x64", True)
    K = len(params["init"])
    hmm = DiagonalGaussianHMM(
        K, D, initial_probs_concentration=1.0, transition_matrix_concentration=1.0, 
        emission_prior_mean_concentration=0.0,
        emission_prior_concentration=-1.5, emission_prior_scale=0.0,
    )  # fmt: skip
    state, props = hmm.initialize(
        jax.random.PRNGKey(0), initial_probs=jnp.asarray(params["init"]), transition_matrix=
        jnp.asarray(params["trans"]),
        emission_means=jnp.asarray(params["locs"]), emission_scale_diags=jnp.asarray(params["scales"]),
    )  # fmt: skip
    data = jnp.asarray(x)

    @jax.jit
    def step(params, m_state):
        stats, _ = jax.vmap(partial(hmm.e_step, params))(data)
        return hmm.m_step(params, props, stats, m_state)

    m_state = hmm.initialize_m_step_state(state, props)
    jax.block_until_ready(step(state, m_state))
    ticks = [time.perf_counter()]
    for _ in range(steps):
        state, m_state = jax.block_until_ready(step(state, m_state))
        ticks.append(time.perf_counter())
    found = state.initial.probs, state.transitions.transition_matrix, state.emissions.means, state.emissions.scale_diags
    return Run(ticks, dict(zip(("init", "trans", "locs", "scales"), map(np.asarray, found), strict=True)))


def many() -> Contest:
    num, T, K = MANY
    x, start = simulate(num, T, K)
    ours = partial(by_fit, loop(start), torch.from_numpy(x))
    return Contest(f"{num} series of {T}, K={K}", "dynamax", ours, partial(by_dynamax, x), start, 0.40, 10)


def by_svi(x: Tensor, start: Params, params: Params, steps: int) -> Run:
    """Steps of Adam on the enumerated evidence, as a Pyro user makes them; what they reach is not compared."""
    pyro.clear_param_store()
    svi = SVI(
        config_enumerate(loop(start)),
        lambda x: None,
        pyro.optim.Adam({"lr": 0.01}),
        TraceEnum_ELBO(max_plate_nesting=1),
    )
    ticks = [time.perf_counter()]
    for _ in range(steps):
        svi.step(x)
        ticks.append(time.perf_counter())
    pyro.clear_param_store()
    return Run(ticks, params)


def beside_svi() -> Contest:
    x, start = simulate(1, 1_000, 5)
    data = torch.from_numpy(x[0])
    ours = partial(by_fit, loop(start), data)
    return Contest(
        "a step at T=1000, K=5", "Pyro's SVI", ours, partial(by_svi, data, start), start, 0.005, 2, exact=False
    )


def by_whole_fit(model: Model, x: Tensor, params: Params, steps: int) -> Run:
    """From call to result, as if it were one iteration."""
    run = by_fit(model, x, params, ITERATIONS)
    return Run([0.0, run.around + run.ticks[-1] - run.ticks[0]], params, before=run.before, around=run.around)


def by_trace(model: Model, x: Tensor, params: Params, steps: int) -> Run:
    """One enumerated trace, as Pyro makes it by default."""
    pyro.clear_param_store()
    began = time.perf_counter()
    trace = poutine.trace(poutine.enum(config_enumerate(model), first_available_dim=-2)).get_trace(x)
    trace.compute_log_prob()
    trace.pack_tensors()
    wall = time.perf_counter() - began
    pyro.clear_param_store()
    return Run([0.0, wall], params)


def beside_trace() -> Contest:
    x, start = simulate(1, 2_000, 5)
    data, model = torch.from_numpy(x[0]), loop(start)
    sides = partial(by_whole_fit, model, data), partial(by_trace, model, data)
    return Contest(f"a fit, T=2000, {ITERATIONS} iterations", "a trace", *sides, start, 3.0, 1, exact=False)


def contests() -> Iterator[tuple[str, Callable[[], Contest]]]:
    for T, K, target, steps in SERIES:
        yield series_name(T, K), partial(series, T, K, target, steps)
    if find_spec("dynamax") is None:
        print("dynamax is not installed: its row is left out.")
    else:
        yield "many", many
    yield "step", beside_svi
    yield "fit", beside_trace


def bench(options: argparse.Namespace) -> bool:
    return run_contests(contests(), options)


if __name__ == "__main__":
    launch(bench, options_parser(__doc__))
