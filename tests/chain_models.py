"""Chains of every structure, each a plain Pyro program with data, long enough to be taken as a chain.

Every entry of `MODELS` is (model, arguments); parameters start apart, so that one step moves all of them.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

K, N, T = 3, 4, 9
positive, simplex, real = constraints.positive, constraints.simplex, constraints.real


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def law(name: str, *shape: int) -> Tensor:
    seed = sum(map(ord, name))
    return pyro.param(name, lambda: numbers(*shape, seed=seed).softmax(-1), constraint=simplex)


def free(name: str, *shape: int, constraint: Any = real) -> Tensor:
    seed = sum(map(ord, name))
    start = numbers(*shape, seed=seed)
    return pyro.param(name, lambda: start.exp() if constraint is positive else start, constraint=constraint)


def series(x: Tensor) -> None:
    init, trans = law("init", K), law("trans", K, K)
    locs, scales = free("locs", K), free("scales", K, constraint=positive)
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], scales[z]), obs=x[t])


def ragged(x: Tensor, lengths: Tensor) -> None:
    init, trans, rates = law("init", K), law("trans", K, K), free("rates", K, constraint=positive)
    with pyro.plate("sequences", len(x)):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if t == 0 else trans[z]))
                pyro.sample(f"x_{t}", dist.Poisson(rates[z]), obs=x[:, t])


def missing(x: Tensor) -> None:
    """Holes in the middle, some at the end; the same initial law as the transitions' first row."""
    trans, locs = law("trans", K, K), free("locs", K, 2)
    scales = free("scales", 2, constraint=positive)
    with pyro.plate("sequences", x.shape[0]):
        z = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            here = dist.Normal(locs[z], scales).mask(~x[:, t].isnan()).to_event(1)
            pyro.sample(f"x_{t}", here, obs=x[:, t].nan_to_num())


def per_time(x: Tensor) -> None:
    """Transitions and means that differ from one time to the next."""
    init, trans, locs = law("init", K), law("trans", T - 1, K, K), free("locs", T, K)
    with pyro.plate("sequences", x.shape[0]):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[t - 1, z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[t, z], 1.0), obs=x[:, t])


def covariates(x: Tensor, u: Tensor) -> None:
    """A logit of staying that is linear in a covariate of row and time; two states."""
    a, b = free("a", 2), free("b", 2)
    locs = free("locs", 2)
    with pyro.plate("sequences", x.shape[0]):
        z = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(logits=a[z] + b[z] * u[:, t])).long()
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


def autoregressive(x: Tensor) -> None:
    trans, slope, level = law("trans", K, K), free("slope", K), free("level", K)
    scale = free("scale", K, constraint=positive)
    z = torch.tensor(0)
    for t in pyro.markov(range(1, len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(level[z] + slope[z] * x[t - 1], scale[z]), obs=x[t])


def several_sites(x: Tensor) -> None:
    """Two sites each time, one of them in a plate of its own."""
    init, trans = law("init", K), law("trans", K, K)
    locs, probs = (
        free("locs", K),
        pyro.param("probs", lambda: numbers(K, 2).sigmoid(), constraint=constraints.unit_interval),
    )
    with pyro.plate("sequences", x.shape[0], dim=-1):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if t == 0 else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])
            with pyro.plate(f"items_{t}", 2, dim=-2):
                answers = torch.stack([x[:, t] > 0, x[:, t] > 0.5]).double()
                pyro.sample(f"y_{t}", dist.Bernoulli(Vindex(probs.T)[torch.arange(2).unsqueeze(-1), z]), obs=answers)


def factorial(x: Tensor) -> None:
    """Two chains behind one series."""
    first, second = law("first", 2, 2), law("second", K, K)
    locs = free("locs", 2, K)
    v = w = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        v = pyro.sample(f"v_{t}", dist.Categorical(first[v]))
        w = pyro.sample(f"w_{t}", dist.Categorical(second[w]))
        pyro.sample(f"x_{t}", dist.Normal(Vindex(locs)[v, w], 1.0), obs=x[t])


def coupled(x: Tensor) -> None:
    """The second chain depends on the first at the same time; both are seen, until one is not."""
    first, second = law("first", 2, 2), law("second", 2, K, K)
    locs, means = free("locs", 2), free("means", K)
    v = w = torch.tensor(0)
    with pyro.plate("sequences", x.shape[0]):
        for t in pyro.markov(range(x.shape[1])):
            v = pyro.sample(f"v_{t}", dist.Categorical(first[v]))
            w = pyro.sample(f"w_{t}", dist.Categorical(Vindex(second)[v, w]))
            pyro.sample(f"x_{t}", dist.Normal(locs[v], 1.0), obs=x[:, t])
            if t < T - 2:
                pyro.sample(f"y_{t}", dist.Normal(means[w], 1.0), obs=x[:, t] ** 2)


def uneven(x: Tensor) -> None:
    """Two independent series of latents that meet in the data, of which one goes on alone."""
    first, second = law("first", 2, 2), law("second", 2, 2)
    v = w = torch.tensor(0)
    locs = free("locs", 2, 2)
    with pyro.plate("sequences", x.shape[0]):
        for t in pyro.markov(range(x.shape[1])):
            v = pyro.sample(f"v_{t}", dist.Categorical(first[v]))
            w = pyro.sample(f"w_{t}", dist.Categorical(second[w]))
            with poutine.mask(mask=torch.tensor(t < T - 2)):
                pyro.sample(f"x_{t}", dist.Normal(Vindex(locs)[v, w], 1.0), obs=x[:, t])
            pyro.sample(f"y_{t}", dist.Normal(v.double(), 2.0), obs=x[:, t])


def second_order(x: Tensor) -> None:
    init, trans = law("init", 2), law("trans", 2, 2, 2)
    locs = free("locs", 2)
    z = y = None
    for t in pyro.markov(range(len(x)), history=2):
        probs = init if z is None else trans[0, z] if y is None else Vindex(trans)[y, z]
        y, z = z, pyro.sample(f"z_{t}", dist.Categorical(probs))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def mixture(x: Tensor) -> None:
    """A class for each sequence chooses its transitions."""
    share, init, trans = law("share", 2), law("init", K), law("trans", 2, K, K)
    locs = free("locs", K)
    with pyro.plate("sequences", x.shape[0]):
        c = pyro.sample("c", dist.Categorical(share))
        pyro.sample("s", dist.Normal(c.double(), 1.0), obs=x[:, 0])
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else Vindex(trans)[c, z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


def left_to_right(x: Tensor) -> None:
    """Exact zeros among the transitions."""
    start = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
    trans = pyro.param("trans", start, constraint=simplex)
    locs = free("locs", K)
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def with_priors(x: Tensor) -> None:
    with pyro.plate("states", K):
        trans = pyro.sample("trans", dist.Dirichlet(torch.full((K,), 2.0, dtype=torch.float64)))
        locs = pyro.sample("locs", dist.Normal(torch.zeros((), dtype=torch.float64), 3.0))
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def matrices(x: Tensor) -> None:
    """Full covariances."""
    trans, locs = law("trans", K, K), free("locs", K, 2)
    start = torch.eye(2, dtype=torch.float64) + 0.3 * numbers(K, 2, 2).tril(-1)
    tril = pyro.param("tril", start, constraint=constraints.lower_cholesky)
    z = torch.tensor(0)
    for t in pyro.markov(range(x.shape[0])):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        pyro.sample(f"x_{t}", dist.MultivariateNormal(locs[z], scale_tril=tril[z]), obs=x[t])


def stationary(x: Tensor) -> None:
    """The initial law is that which the transitions keep: opaque to closed forms."""
    trans, locs = law("trans", 2, 2), free("locs", 2)
    first = torch.stack([trans[1, 0], trans[0, 1]])
    init = first / first.sum()
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def holes() -> Tensor:
    x = numbers(N, T, 2, seed=3)
    x[0, 2:4, 0] = x[1, 4] = x[2, 6:] = torch.nan
    return x


COUNTS = torch.Generator().manual_seed(1)
COUNTED = torch.poisson(torch.full((N, T), 3.0, dtype=torch.float64), generator=COUNTS)
LENGTHS = torch.tensor([T, 5, 1, 0])

MODELS: dict[str, tuple[Callable[..., None], tuple[Tensor, ...]]] = {
    "series": (series, (2 * numbers(T),)),
    "ragged": (ragged, (COUNTED, LENGTHS)),
    "missing": (missing, (holes(),)),
    "per_time": (per_time, (numbers(N, T),)),
    "covariates": (covariates, (numbers(N, T), numbers(N, T, seed=5))),
    "autoregressive": (autoregressive, (numbers(T + 1),)),
    "several_sites": (several_sites, (numbers(N, T),)),
    "factorial": (factorial, (numbers(T),)),
    "coupled": (coupled, (numbers(N, T),)),
    "uneven": (uneven, (numbers(N, T),)),
    "second_order": (second_order, (numbers(2 * T),)),
    "mixture": (mixture, (numbers(N, T),)),
    "left_to_right": (left_to_right, (numbers(T),)),
    "with_priors": (with_priors, (numbers(T),)),
    "matrices": (matrices, (numbers(12 * K, 2),)),
    "stationary": (stationary, (numbers(T),)),
}
