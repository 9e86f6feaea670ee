"""Small Pyro programs, one per structure that a fit must get right, on data tiny enough to sum.

Each is written as a Pyro user would write it: no `config_enumerate`, no hint for the fit. Data and
initial parameters are fixed and irregular, so that no two probabilities agree by symmetry and a
transposed table cannot pass unnoticed. Scales are mostly shared between components, so that a few
EM steps on so few data do not collapse one of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.constraints import lower_cholesky, positive, simplex, unit_interval
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.nn.functional import one_hot

__all__ = ["PROGRAMS", "TAGS", "Program", "select"]

TAGS = {
    "plate": "an enumerated latent inside a plate",
    "global": "an enumerated latent outside every plate",
    "nested": "plates within plates",
    "markov": "latents in a pyro.markov loop",
    "map": "latents that are to be point-estimated (same programs as 'continuous')",
    "continuous": "global continuous latents; `Program.given` has a value for each",
    "mask": "poutine.mask or dist.mask",
    "nan": "NaN in the data, under a mask",
    "obs_mask": "pyro.sample(..., obs_mask=...)",
    "scale": "poutine.scale",
    "subsample": "a plate that sees a subset of its data, hence a scale",
    "network": "arguments computed by a torch module",
    "module": "the model is a PyroModule",
    "factor": "pyro.factor: the joint is not normalised",
    "deterministic": "pyro.deterministic",
    "family": "a latent that is not Categorical",
    "impossible": "states of probability zero",
    "edge": "N = 1, K = 1 or a latent without children",
    "float32": "single precision: compare with a loose tolerance",
}

Made = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

f64 = partial(torch.tensor, dtype=torch.float64)


@dataclass(frozen=True)
class Program:
    """One entry of the corpus; `make()` returns a fresh `(model, args, kwargs)` at each call.

    `given` holds a value for each continuous latent, where the joint may be evaluated.
    """

    name: str
    make: Callable[[], Made]
    tags: frozenset[str]
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name


PROGRAMS: list[Program] = []


def select(*tags: str, without: tuple[str, ...] = ()) -> list[Program]:
    """The programs that carry every tag in `tags` and none in `without`."""
    if unknown := {*tags, *without} - TAGS.keys():
        raise ValueError(f"Unknown tags {sorted(unknown)}; known are {sorted(TAGS)}.")
    return [p for p in PROGRAMS if p.tags.issuperset(tags) and p.tags.isdisjoint(without)]


def _program(
    *tags: str, given: Mapping[str, Tensor] | None = None
) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def register(make: Callable[[], Made]) -> Callable[[], Made]:
        PROGRAMS.append(Program(make.__name__, make, frozenset(tags), given or {}))
        return make

    return register


def _set_irregular(module: nn.Module) -> nn.Module:
    """Overwrite a module's random initial weights, so that it is the same at each call."""
    for i, p in enumerate(module.parameters()):
        steps = torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape)
        p.data = torch.sin(1.7 * steps + 0.9 * i + 0.4)
    return module


# Mixtures in a plate ------------------------------------------------------------------------------


@_program("plate")
def gaussian_mixture() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.21, 0.47, 0.32]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.3, 0.4, 2.2]))
        scales = pyro.param("scales", f64([0.7, 0.9, 1.2]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)

    return model, (f64([-1.1, 0.2, 0.9, 2.6, 1.7]),), {}


@_program("plate")
def multivariate_mixture() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.38, 0.62]), constraint=simplex)
        locs = pyro.param("locs", f64([[-0.7, 0.3], [1.1, 0.8]]))
        tril = pyro.param("tril", f64([[0.9, 0.0], [0.3, 1.1]]), constraint=lower_cholesky)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=tril), obs=x)

    x = f64([[-0.9, 0.1], [0.4, 1.0], [1.6, 0.2], [0.2, -0.6], [1.9, 1.4]])
    return model, (x,), {}


@_program("plate")
def diagonal_mixture() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.44, 0.56]), constraint=simplex)
        locs = pyro.param("locs", f64([[-0.6, 0.2, 1.0], [1.3, 0.5, -0.4]]))
        scale = pyro.param("scale", f64([0.8, 1.1, 0.6]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scale).to_event(1), obs=x)

    x = f64([[-0.5, 0.4, 0.7], [1.0, 0.9, -0.1], [0.3, -0.2, 0.5], [1.8, 0.1, -0.9]])
    return model, (x,), {}


@_program("plate")
def poisson_mixture() -> Made:
    def model(counts: Tensor) -> None:
        weights = pyro.param("weights", f64([0.27, 0.73]), constraint=simplex)
        rates = pyro.param("rates", f64([1.4, 5.3]), constraint=positive)
        with pyro.plate("data", len(counts)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("counts", dist.Poisson(rates[z]), obs=counts)

    return model, (f64([0.0, 3.0, 7.0, 2.0, 4.0, 1.0]),), {}


@_program("plate")
def mixed_observations() -> Made:
    """Several observed sites of different families share one latent."""

    def model(size: Tensor, wait: Tensor, kind: Tensor) -> None:
        weights = pyro.param("weights", f64([0.35, 0.65]), constraint=simplex)
        locs = pyro.param("locs", f64([0.2, 1.7]))
        rates = pyro.param("rates", f64([0.8, 2.3]), constraint=positive)
        kinds = pyro.param("kinds", f64([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]), constraint=simplex)
        with pyro.plate("data", len(size)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("size", dist.LogNormal(locs[z], f64(0.6)), obs=size)
            pyro.sample("wait", dist.Exponential(rates[z]), obs=wait)
            pyro.sample("kind", dist.Categorical(kinds[z]), obs=kind)

    args = (f64([0.9, 3.1, 6.4, 1.8]), f64([1.1, 0.3, 0.2, 0.7]), torch.tensor([1, 0, 2, 1]))
    return model, args, {}


@_program("plate")
def regression_mixture() -> Made:
    """Means are affine in the parameters, not a selection of them."""

    def model(features: Tensor, y: Tensor) -> None:
        weights = pyro.param("weights", f64([0.58, 0.42]), constraint=simplex)
        slopes = pyro.param("slopes", f64([[0.7, -0.4], [-1.2, 0.9]]))
        intercepts = pyro.param("intercepts", f64([0.3, 1.1]))
        scale = pyro.param("scale", f64(0.8), constraint=positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            mean = (slopes[z] * features).sum(-1) + intercepts[z]
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    features = f64([[0.1, 1.2], [0.8, -0.5], [-1.1, 0.3], [1.5, 0.9], [-0.2, -1.4]])
    return model, (features,), {"y": f64([-0.1, 1.2, 2.4, 0.6, 0.9])}


@_program("plate")
def observed_child() -> Made:
    """Latent class analysis: discrete observed answers, a latent parent."""

    def model(answers: Tensor) -> None:
        weights = pyro.param("weights", f64([0.52, 0.31, 0.17]), constraint=simplex)
        probs = pyro.param(
            "probs",
            f64([[0.2, 0.7, 0.4], [0.9, 0.3, 0.6], [0.5, 0.1, 0.8]]),
            constraint=unit_interval,
        )
        with pyro.plate("people", len(answers)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("answers", dist.Bernoulli(probs[z]).to_event(1), obs=answers)

    return model, (f64([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1]]),), {}


@_program("plate")
def logits_mixture() -> Made:
    """Weights and answers by logits: the parameters are unconstrained, and redundant by one."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", f64([0.3, -0.6, 0.1]))
        answer_logits = pyro.param("answer_logits", f64([-1.2, 0.4, 1.9]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Bernoulli(logits=answer_logits[z]), obs=x)

    return model, (f64([1.0, 0.0, 1.0, 1.0]),), {}


@_program("plate")
def coupled_latents() -> Made:
    def model(x: Tensor) -> None:
        first = pyro.param("first", f64([0.41, 0.59]), constraint=simplex)
        second = pyro.param("second", f64([[0.2, 0.3, 0.5], [0.6, 0.25, 0.15]]), constraint=simplex)
        locs = pyro.param("locs", f64([[-1.4, 0.1, 0.9], [0.5, 1.6, 2.7]]))
        scale = pyro.param("scale", f64(0.9), constraint=positive)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Categorical(first))
            z2 = pyro.sample("z2", dist.Categorical(second[z1]))
            pyro.sample("x", dist.Normal(locs[z1, z2], scale), obs=x)

    return model, (f64([-0.8, 0.7, 2.3]),), {}


@_program("plate")
def additive_latents() -> Made:
    """Two independent causes add up: coupled a posteriori, and means that select no parameter."""

    def model(x: Tensor) -> None:
        p, q = pyro.param("p", f64([0.3, 0.7]), constraint=simplex), f64([0.2, 0.5, 0.3])
        left, right = (
            pyro.param("left", f64([-0.9, 0.8])),
            pyro.param("right", f64([0.1, 1.3, 2.9])),
        )
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(p))
            b = pyro.sample("b", dist.Categorical(q))
            pyro.sample("x", dist.Normal(left[a] + right[b], f64(0.7)), obs=x)

    return model, (f64([0.4, 1.9, 3.2]),), {}


@_program("plate")
def vindex_tables() -> Made:
    """A table per datum, read with Vindex, and a second one indexed by two latents and a slice."""

    def model(x: Tensor, word: Tensor) -> None:
        weights = pyro.param("weights", f64([0.33, 0.67]), constraint=simplex)
        locs = pyro.param("locs", f64([[0.2, 1.4], [-0.6, 0.9], [1.1, 2.5]]))
        vocabulary = pyro.param(
            "vocabulary",
            f64([[[0.1, 0.6, 0.3], [0.4, 0.4, 0.2]], [[0.7, 0.1, 0.2], [0.25, 0.3, 0.45]]]),
            constraint=simplex,
        )
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(weights))
            b = pyro.sample("b", dist.Bernoulli(f64(0.38))).long()
            pyro.sample("x", dist.Normal(Vindex(locs)[..., a], f64(0.8)), obs=x)
            pyro.sample("word", dist.Categorical(Vindex(vocabulary)[b, a, :]), obs=word)

    return model, (f64([0.9, 0.3, 1.6]), torch.tensor([1, 0, 2])), {}


# Plates -------------------------------------------------------------------------------------------


@_program("global")
def global_latent() -> Made:
    """One latent for all the data: its posterior sees a sum over the plate."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.2, 0.5, 0.3]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.4, 0.3, 0.8]))
        z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(locs[z], f64(1.3)), obs=x)

    return model, (f64([0.6, -0.7, 1.1, 0.2]),), {}


@_program("global", "plate")
def global_and_local() -> Made:
    def model(x: Tensor) -> None:
        regime = pyro.param("regime", f64([0.43, 0.57]), constraint=simplex)
        weights = pyro.param("weights", f64([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.0, 0.6, 1.9]))
        scales = pyro.param("scales", f64([0.8, 1.2]), constraint=positive)
        c = pyro.sample("c", dist.Categorical(regime))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights[c]))
            pyro.sample("x", dist.Normal(locs[z], scales[c]), obs=x)

    return model, (f64([-0.6, 0.9, 2.2, 0.1]),), {}


@_program("global", "plate")
def sibling_plates() -> Made:
    def model(x: Tensor, y: Tensor) -> None:
        weights = pyro.param("weights", f64([0.36, 0.64]), constraint=simplex)
        probs = pyro.param("probs", f64([[0.3, 0.7], [0.8, 0.2]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.9, 1.2]))
        rates = pyro.param("rates", f64([[1.1, 2.9], [4.2, 0.6]]), constraint=positive)
        c = pyro.sample("c", dist.Categorical(weights))
        with pyro.plate("left", len(x)):
            a = pyro.sample("a", dist.Categorical(probs[c]))
            pyro.sample("x", dist.Normal(locs[a], f64(0.9)), obs=x)
        with pyro.plate("right", len(y)):
            b = pyro.sample("b", dist.Categorical(probs[1 - c]))
            pyro.sample("y", dist.Poisson(rates[c, b]), obs=y)

    return model, (f64([-0.3, 1.4, 0.8]), f64([2.0, 5.0])), {}


@_program("plate")
def independent_plates() -> Made:
    """Nothing in common but a parameter: the statistics of both plates add up."""

    def model(x: Tensor, y: Tensor) -> None:
        weights = pyro.param("weights", f64([0.29, 0.71]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.2, 1.5]))
        with pyro.plate("first", len(x)):
            a = pyro.sample("a", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[a], f64(0.7)), obs=x)
        with pyro.plate("second", len(y)):
            b = pyro.sample("b", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(locs[b] + 0.4, f64(1.1)), obs=y)

    return model, (f64([0.3, 1.2, -0.8]), f64([1.9, 0.5])), {}


def _documents(docs_dim: int, words: Tensor) -> Made:
    def model(words: Tensor) -> None:
        classes = pyro.param("classes", f64([0.4, 0.6]), constraint=simplex)
        topics = pyro.param("topics", f64([[0.75, 0.25], [0.35, 0.65]]), constraint=simplex)
        vocabulary = pyro.param(
            "vocabulary", f64([[0.1, 0.2, 0.3, 0.4], [0.45, 0.15, 0.05, 0.35]]), constraint=simplex
        )
        words_dim = -3 - docs_dim
        docs = pyro.plate("docs", words.shape[docs_dim], dim=docs_dim)
        with docs:
            c = pyro.sample("class", dist.Categorical(classes))
        with docs, pyro.plate("words", words.shape[words_dim], dim=words_dim):
            z = pyro.sample("topic", dist.Categorical(topics[c]))
            pyro.sample("word", dist.Categorical(vocabulary[z]), obs=words)

    return model, (words,), {}


@_program("plate", "nested")
def documents_rightmost() -> Made:
    return _documents(-1, torch.tensor([[0, 3], [2, 1], [3, 0]]))


@_program("plate", "nested")
def documents_leftmost() -> Made:
    return _documents(-2, torch.tensor([[0, 2, 3], [3, 1, 1]]))


@_program("plate", "nested")
def latent_at_dim_minus_two() -> Made:
    """The inner plate holds observations only."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.25, 0.45, 0.3]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.8, 0.5, 1.4]))
        scale = pyro.param("scale", f64([[0.9, 1.3]]), constraint=positive)
        groups = pyro.plate("groups", x.shape[0], dim=-2)
        items = pyro.plate("items", x.shape[1], dim=-1)
        with groups:
            z = pyro.sample("z", dist.Categorical(weights))
            with items:
                pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model, (f64([[-0.4, 0.1], [0.9, 1.8], [0.3, -1.2], [1.5, 0.6]]),), {}


@_program("plate")
def sequential_plate() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.62, 0.38]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.5, 1.2]))
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Categorical(weights))
            pyro.sample(f"x_{i}", dist.Normal(locs[z], f64(0.8)), obs=x[i])

    return model, (f64([0.2, -0.9, 1.6]),), {}


# Chains -------------------------------------------------------------------------------------------


@_program("markov")
def hidden_markov() -> Made:
    def model(x: Tensor) -> None:
        init = pyro.param("init", f64([0.5, 0.2, 0.3]), constraint=simplex)
        trans = pyro.param(
            "trans",
            f64([[0.7, 0.2, 0.1], [0.15, 0.55, 0.3], [0.25, 0.35, 0.4]]),
            constraint=simplex,
        )
        locs = pyro.param("locs", f64([-1.1, 0.3, 1.8]))
        scale = pyro.param("scale", f64(0.9), constraint=positive)
        z = None
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=x[t])

    return model, (f64([-0.7, 0.4, 1.3, 0.9, -0.2]),), {}


@_program("markov", "plate", "mask")
def ragged_chains() -> Made:
    def model(sequences: Tensor, lengths: Tensor) -> None:
        init = pyro.param("init", f64([0.63, 0.37]), constraint=simplex)
        trans = pyro.param("trans", f64([[0.8, 0.2], [0.35, 0.65]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.6, 1.3]))
        z = None
        with pyro.plate("sequences", len(sequences)):
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                    pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.8)), obs=sequences[:, t])

    sequences = f64([[0.3, -0.9, 1.1, 1.6], [1.4, 0.2, 0.0, 0.0]])
    return model, (sequences,), {"lengths": torch.tensor([4, 2])}


@_program("markov", "plate", "nested", "mask")
def tones_chain() -> Made:
    """Model 1 of Pyro's HMM example: the chain lives at dim -2, its tones at dim -1."""

    def model(sequences: Tensor, lengths: Tensor) -> None:
        probs_x = pyro.param("probs_x", f64([[0.7, 0.3], [0.4, 0.6]]), constraint=simplex)
        probs_y = pyro.param(
            "probs_y", f64([[0.2, 0.8, 0.55], [0.9, 0.35, 0.1]]), constraint=unit_interval
        )
        tones_plate = pyro.plate("tones", sequences.shape[-1], dim=-1)
        tones = torch.arange(sequences.shape[-1])
        with pyro.plate("sequences", len(sequences), dim=-2):
            x = torch.tensor(0)
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]))
                    with tones_plate:
                        probs = Vindex(probs_y)[x, tones]
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs), obs=sequences[:, t])

    sequences = f64([[[0, 1, 1], [1, 0, 0], [1, 1, 0]], [[1, 0, 1], [0, 1, 0], [0, 0, 0]]])
    return model, (sequences, torch.tensor([3, 2])), {}


@_program("markov")
def factorial_chains() -> Made:
    """Two independent chains, coupled by the emission that sees both."""

    def model(y: Tensor) -> None:
        probs_w = pyro.param("probs_w", f64([[0.6, 0.4], [0.25, 0.75]]), constraint=simplex)
        probs_x = pyro.param("probs_x", f64([[0.85, 0.15], [0.3, 0.7]]), constraint=simplex)
        probs_y = pyro.param("probs_y", f64([[0.1, 0.55], [0.7, 0.35]]), constraint=unit_interval)
        w = x = torch.tensor(0)
        for t in pyro.markov(range(len(y))):
            w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]))
            x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]))
            pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[w, x]), obs=y[t])

    return model, (f64([1.0, 0.0, 0.0, 1.0]),), {}


@_program("markov")
def coupled_chains() -> Made:
    """Model 4 of Pyro's HMM example: x depends on its own past and on w."""

    def model(y: Tensor) -> None:
        probs_w = pyro.param("probs_w", f64([[0.6, 0.4], [0.25, 0.75]]), constraint=simplex)
        probs_x = pyro.param(
            "probs_x",
            f64([[[0.8, 0.2], [0.35, 0.65]], [[0.1, 0.9], [0.55, 0.45]]]),
            constraint=simplex,
        )
        locs = pyro.param("locs", f64([[-0.9, 0.7], [0.2, 1.6]]))
        w = x = torch.tensor(0)
        for t in pyro.markov(range(len(y))):
            w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]))
            x = pyro.sample(f"x_{t}", dist.Categorical(Vindex(probs_x)[w, x]))
            pyro.sample(f"y_{t}", dist.Normal(Vindex(locs)[w, x], f64(0.7)), obs=y[t])

    return model, (f64([0.5, -0.3, 1.2, 0.8]),), {}


@_program("markov")
def second_order_chain() -> Made:
    def model(x: Tensor) -> None:
        trans = pyro.param(
            "trans", f64([[[0.7, 0.3], [0.2, 0.8]], [[0.45, 0.55], [0.9, 0.1]]]), constraint=simplex
        )
        locs = pyro.param("locs", f64([-0.7, 1.1]))
        before = last = torch.tensor(0)
        for t in pyro.markov(range(len(x)), history=2):
            z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(trans)[before, last]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.9)), obs=x[t])
            before, last = last, z

    return model, (f64([0.4, -0.8, 1.3, 0.1, 0.9, -0.5]),), {}


@_program("markov")
def many_emissions() -> Made:
    def model(x: Tensor, counts: Tensor, kinds: Tensor) -> None:
        init = pyro.param("init", f64([0.7, 0.3]), constraint=simplex)
        trans = pyro.param("trans", f64([[0.65, 0.35], [0.2, 0.8]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.4, 1.2]))
        rates = pyro.param("rates", f64([1.3, 3.8]), constraint=positive)
        probs = pyro.param("probs", f64([[0.5, 0.3, 0.2], [0.15, 0.25, 0.6]]), constraint=simplex)
        z = None
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.9)), obs=x[t])
            pyro.sample(f"count_{t}", dist.Poisson(rates[z]), obs=counts[t])
            pyro.sample(f"kind_{t}", dist.Categorical(probs[z]), obs=kinds[t])

    args = (f64([0.3, 1.1, -0.6, 0.8]), f64([2.0, 4.0, 0.0, 1.0]), torch.tensor([1, 2, 0, 2]))
    return model, args, {}


@_program("markov", "plate")
def autoregressive_chains() -> Made:
    """Each emission depends on the one before: an observed value inside a distribution argument."""

    def model(x: Tensor) -> None:
        init = pyro.param("init", f64([0.55, 0.45]), constraint=simplex)
        trans = pyro.param("trans", f64([[0.75, 0.25], [0.4, 0.6]]), constraint=simplex)
        slopes = pyro.param("slopes", f64([0.8, -0.5]))
        locs = pyro.param("locs", f64([0.1, 0.9]))
        z, previous = None, f64(0.0)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                mean = locs[z] + slopes[z] * previous
                pyro.sample(f"x_{t}", dist.Normal(mean, f64(0.7)), obs=x[:, t])
                previous = x[:, t]

    return model, (f64([[0.6, 0.9, -0.3, 1.4], [-0.2, 0.5, 1.1, 0.7]]),), {}


@_program("markov", "plate")
def mixture_of_chains() -> Made:
    """A class per sequence chooses its dynamics: a loop of cliques (class, z_t, z_t+1)."""

    def model(x: Tensor) -> None:
        classes = pyro.param("classes", f64([0.46, 0.54]), constraint=simplex)
        init = pyro.param("init", f64([[0.7, 0.3], [0.2, 0.8]]), constraint=simplex)
        trans = pyro.param(
            "trans", f64([[[0.9, 0.1], [0.3, 0.7]], [[0.4, 0.6], [0.55, 0.45]]]), constraint=simplex
        )
        locs = pyro.param("locs", f64([-0.8, 1.0]))
        with pyro.plate("sequences", len(x)):
            c = pyro.sample("c", dist.Categorical(classes))
            z = None
            for t in pyro.markov(range(x.shape[1])):
                probs = init[c] if z is None else Vindex(trans)[c, z]
                z = pyro.sample(f"z_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.9)), obs=x[:, t])

    return model, (f64([[-0.5, 0.7, 1.2], [0.9, 0.3, -1.0]]),), {}


@_program("markov", "global")
def class_over_chain() -> Made:
    """As above with one sequence and no plate; the class changes the emission too."""

    def model(x: Tensor) -> None:
        classes = pyro.param("classes", f64([0.3, 0.25, 0.45]), constraint=simplex)
        trans = pyro.param("trans", f64([[0.8, 0.2], [0.35, 0.65]]), constraint=simplex)
        locs = pyro.param("locs", f64([[-0.8, 1.0], [0.2, 0.5], [1.4, -0.3]]))
        c = pyro.sample("c", dist.Categorical(classes))
        z = torch.tensor(1)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(Vindex(locs)[c, z], f64(0.8)), obs=x[t])

    return model, (f64([0.9, 0.1, -0.6, 1.2]),), {}


@_program("markov", "plate")
def chain_of_mixtures() -> Made:
    """A plate of local latents hangs from every link of a single chain."""

    def model(x: Tensor) -> None:
        trans = pyro.param("trans", f64([[0.7, 0.3], [0.25, 0.75]]), constraint=simplex)
        weights = pyro.param("weights", f64([[0.6, 0.4], [0.15, 0.85]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.9, 0.8]))
        items = pyro.plate("items", x.shape[1])
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            with items:
                w = pyro.sample(f"w_{t}", dist.Categorical(weights[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[w], f64(0.7)), obs=x[t])

    return model, (f64([[-0.4, 0.6], [1.1, 0.2], [0.5, -1.3]]),), {}


# Families of latents ------------------------------------------------------------------------------


@_program("plate", "family")
def bernoulli_latent() -> Made:
    def model(x: Tensor) -> None:
        p = pyro.param("p", f64(0.37), constraint=unit_interval)
        low, high = pyro.param("low", f64(-0.6)), pyro.param("high", f64(1.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(torch.where(z > 0, high, low), f64(0.8)), obs=x)

    return model, (f64([0.4, -1.1, 1.7, 0.6, 0.9]),), {}


@_program("global", "family")
def noisy_or() -> Made:
    """Global Bernoulli causes, observed Bernoulli symptoms, no parameter selected as it is."""

    def model(symptoms: Tensor) -> None:
        priors = pyro.param("priors", f64([0.3, 0.15]), constraint=unit_interval)
        strength = pyro.param(
            "strength", f64([[0.8, 0.4, 0.1], [0.25, 0.6, 0.7]]), constraint=positive
        )
        flu = pyro.sample("flu", dist.Bernoulli(priors[0]))
        cold = pyro.sample("cold", dist.Bernoulli(priors[1]))
        leak = f64([0.05, 0.1, 0.07])
        with pyro.plate("symptoms", len(symptoms)):
            spared = torch.exp(-leak - flu * strength[0] - cold * strength[1])
            pyro.sample("symptom", dist.Bernoulli(1 - spared), obs=symptoms)

    return model, (f64([1.0, 1.0, 0.0]),), {}


@_program("plate", "family")
def onehot_latent() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.26, 0.4, 0.34]), constraint=simplex)
        locs = pyro.param("locs", f64([[-1.0, 0.2], [0.5, 1.4], [1.7, -0.6]]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(weights))
            pyro.sample("x", dist.Normal(z @ locs, f64([0.8, 1.1])).to_event(1), obs=x)

    return model, (f64([[-0.6, 0.5], [0.8, 0.9], [1.3, -0.1], [0.2, 0.3]]),), {}


@_program("plate", "family")
def binomial_latent() -> Made:
    def model(x: Tensor) -> None:
        p = pyro.param("p", f64(0.43), constraint=unit_interval)
        base, step = pyro.param("base", f64(0.2)), pyro.param("step", f64(0.9))
        with pyro.plate("data", len(x)):
            copies = pyro.sample("copies", dist.Binomial(3, p))
            pyro.sample("x", dist.Normal(base + step * copies, f64(0.6)), obs=x)

    return model, (f64([0.5, 1.6, 2.2, 1.0]),), {}


# Networks and modules -----------------------------------------------------------------------------


@_program("plate", "network")
def network_likelihood() -> Made:
    net = _set_irregular(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double())

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        weights = pyro.param("weights", f64([0.24, 0.45, 0.31]), constraint=simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            loc = net(one_hot(z, 3).double())
            pyro.sample("x", dist.Normal(loc, f64(0.7)).to_event(1), obs=x)

    return model, (f64([[0.4, -0.3], [1.1, 0.8], [-0.7, 0.2], [0.1, 1.5]]),), {}


@_program("plate", "network")
def mixture_of_experts() -> Made:
    """The prior of the latent is a network of covariates, its children are closed form."""
    gate = _set_irregular(nn.Linear(2, 3).double())

    def model(features: Tensor, y: Tensor) -> None:
        pyro.module("gate", gate)
        slopes = pyro.param("slopes", f64([[0.7, -0.4], [-1.2, 0.9], [0.1, 0.5]]))
        scale = pyro.param("scale", f64(0.8), constraint=positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(logits=gate(features)))
            pyro.sample("y", dist.Normal((slopes[z] * features).sum(-1), scale), obs=y)

    features = f64([[0.1, 1.2], [0.8, -0.5], [-1.1, 0.3], [1.5, 0.9]])
    return model, (features, f64([-0.1, 1.2, 0.9, -0.6])), {}


@_program("plate", "module")
def module_with_params() -> Made:
    class Mixture(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.weights = PyroParam(f64([0.6, 0.4]), constraint=simplex)
            self.locs = PyroParam(f64([-0.4, 1.3]))
            self.scale = PyroParam(f64(0.9), constraint=positive)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(self.weights))
                pyro.sample("x", dist.Normal(self.locs[z], self.scale), obs=x)

    return Mixture(), (f64([0.2, -0.7, 1.8, 1.1]),), {}


@_program(
    "plate",
    "module",
    "network",
    "continuous",
    "map",
    given={"linear.weight": f64([[0.6, -0.9]]), "linear.bias": f64([0.2])},
)
def module_with_priors() -> Made:
    """Regression with outliers; the weights of a torch Linear have priors."""

    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1, dtype=torch.float64)
            self.linear.weight = PyroSample(
                dist.Normal(f64(0.0), f64(1.5)).expand([1, 2]).to_event(2)
            )
            self.linear.bias = PyroSample(dist.Normal(f64([0.0]), f64([3.0])).to_event(1))
            self.outliers = PyroParam(f64(0.23), constraint=unit_interval)

        def forward(self, features: Tensor, y: Tensor) -> None:
            mean = self.linear(features).squeeze(-1)
            with pyro.plate("data", len(y)):
                odd = pyro.sample("odd", dist.Bernoulli(self.outliers))
                pyro.sample("y", dist.Normal(mean, 0.4 + 2.5 * odd), obs=y)

    features = f64([[0.1, 1.2], [0.8, -0.5], [-1.1, 0.3], [1.5, 0.9]])
    return Regression(), (features, f64([-0.7, 1.3, 2.8, 0.4])), {}


# Global continuous latents ------------------------------------------------------------------------


@_program(
    "plate",
    "continuous",
    "map",
    given={"weights": f64([0.35, 0.65]), "locs": f64([-0.4, 1.6]), "scale": f64(0.85)},
)
def bayesian_mixture() -> Made:
    """The mixture of Pyro's tutorial: a Dirichlet, a plate of components, a shared scale."""

    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(f64([1.5, 2.0])))
        scale = pyro.sample("scale", dist.LogNormal(f64(0.0), f64(2.0)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(f64(0.0), f64(10.0)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    return model, (f64([-0.9, 0.3, 1.2, 2.1, 1.4]),), {}


@_program(
    "markov",
    "continuous",
    "map",
    given={"trans": f64([[0.7, 0.3], [0.2, 0.8]]), "locs": f64([-0.5, 1.1])},
)
def bayesian_chain() -> Made:
    def model(x: Tensor) -> None:
        trans = pyro.sample("trans", dist.Dirichlet(f64([[9.0, 1.5], [1.2, 7.0]])).to_event(1))
        locs = pyro.sample("locs", dist.Normal(f64([-1.0, 1.0]), f64(2.0)).to_event(1))
        scale = pyro.param("scale", f64(0.8), constraint=positive)
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=x[t])

    return model, (f64([-0.6, 0.9, 1.4, 0.2, -0.3]),), {}


# Masks and missing data ---------------------------------------------------------------------------


@_program("plate", "mask")
def masked_latent() -> Made:
    def model(x: Tensor, present: Tensor) -> None:
        weights = pyro.param("weights", f64([0.31, 0.69]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.5, 1.4]))
        with pyro.plate("data", len(x)), poutine.mask(mask=present):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.9)), obs=x)

    return model, (f64([0.3, -0.8, 1.9, 0.7]), torch.tensor([True, False, True, True])), {}


@_program("plate", "mask", "nan")
def nan_under_poutine_mask() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.31, 0.69]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.5, 1.4]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            with poutine.mask(mask=~x.isnan()):
                pyro.sample("x", dist.Normal(locs[z], f64(0.9), validate_args=False), obs=x)

    return model, (f64([0.3, float("nan"), 1.9, 0.7]),), {}


@_program("plate", "mask", "nan")
def nan_under_dist_mask() -> Made:
    """Missing entries of a vector-valued observation, not missing rows."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.56, 0.44]), constraint=simplex)
        locs = pyro.param("locs", f64([[-0.6, 0.2, 1.0], [1.3, 0.5, -0.4]]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            entries = dist.Normal(locs[z], f64(0.8), validate_args=False).mask(~x.isnan())
            pyro.sample("x", entries.to_event(1), obs=x)

    nan = float("nan")
    return model, (f64([[0.4, nan, 0.9], [nan, nan, -0.7], [1.1, 0.3, nan], [nan, nan, nan]]),), {}


@_program("plate", "obs_mask")
def obs_mask_continuous() -> Made:
    """Pyro imputes the hidden value by sampling it; nothing depends on it, so it sums to one."""

    def model(x: Tensor, seen: Tensor) -> None:
        weights = pyro.param("weights", f64([0.41, 0.59]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.7, 1.2]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x, obs_mask=seen)

    return model, (f64([0.6, -1.2, 0.0, 1.5]), torch.tensor([True, True, False, True])), {}


@_program("plate", "obs_mask", "family")
def obs_mask_bernoulli() -> Made:
    def model(x: Tensor, seen: Tensor) -> None:
        weights = pyro.param("weights", f64([0.41, 0.59]), constraint=simplex)
        probs = pyro.param("probs", f64([0.2, 0.75]), constraint=unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Bernoulli(probs[z]), obs=x, obs_mask=seen)

    return model, (f64([1.0, 0.0, 1.0]), torch.tensor([True, False, True])), {}


@_program("plate", "obs_mask")
def partly_labelled() -> Made:
    """Semi-supervised: the imputed labels matter, since x depends on them."""

    def model(x: Tensor, labels: Tensor, known: Tensor) -> None:
        weights = pyro.param("weights", f64([0.2, 0.55, 0.25]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.1, 0.4, 1.9]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=known)
            pyro.sample("x", dist.Normal(locs[z], f64(0.9)), obs=x)

    known = torch.tensor([True, False, True, False])
    return model, (f64([-0.4, 0.8, 0.3, 1.7]), torch.tensor([0, 0, 2, 0]), known), {}


# Scales, factors, deterministic sites -------------------------------------------------------------


@_program("plate", "scale")
def scaled() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.38, 0.62]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.3, 1.1]))
        with poutine.scale(scale=2.5), pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x)

    return model, (f64([0.7, -0.6, 1.3]),), {}


@_program("plate", "scale", "subsample")
def subsampled() -> Made:
    def model(x: Tensor, batch: Tensor) -> None:
        weights = pyro.param("weights", f64([0.38, 0.62]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.3, 1.1]))
        with pyro.plate("data", len(x), subsample=batch) as index:
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x[index])

    return model, (f64([0.7, -0.6, 1.3, 0.2, 2.1, -1.4]),), {"batch": torch.tensor([0, 2, 5])}


@_program(
    "plate",
    "scale",
    "subsample",
    "continuous",
    "map",
    given={"weights": f64([0.44, 0.56]), "locs": f64([-0.2, 1.3])},
)
def subsampled_with_priors() -> Made:
    """The priors keep scale one while the minibatch is scaled up."""

    def model(x: Tensor, batch: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(f64([2.0, 3.0])))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(f64(0.0), f64(2.0)))
        with pyro.plate("data", len(x), subsample=batch) as index:
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x[index])

    return model, (f64([0.7, -0.6, 1.3, 0.2, 2.1]),), {"batch": torch.tensor([1, 2, 4])}


@_program("plate", "deterministic")
def deterministic_site() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.47, 0.53]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.9, 0.7]))
        spread = pyro.deterministic("spread", locs.max() - locs.min())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            loc = pyro.deterministic("loc", locs[z], event_dim=0)
            pyro.sample("x", dist.Normal(loc, 0.3 * spread), obs=x)

    return model, (f64([0.2, -1.1, 0.9, 0.4]),), {}


@_program("plate", "factor")
def factor_on_latent() -> Made:
    """A soft hint about each label: the joint is no longer normalised."""

    def model(x: Tensor, hint: Tensor) -> None:
        weights = pyro.param("weights", f64([0.28, 0.4, 0.32]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.2, 0.3, 1.6]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.factor("hint", Vindex(hint)[..., z])
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x)

    hint = f64([[0.3, -0.8, 0.1], [0.0, 0.9, -0.4], [-0.2, 0.5, 0.7], [1.1, 0.0, -0.6]])
    return model, (f64([-0.5, 0.4, 0.8, 1.9]), hint), {}


@_program("plate", "factor")
def factor_on_parameters() -> Made:
    """A penalty on the means, outside the plate and the sum."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.28, 0.72]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.2, 0.6]))
        pyro.factor("ridge", -0.3 * locs.square().sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x)

    return model, (f64([-0.5, 0.4, 0.8, 1.9]),), {}


# Edges --------------------------------------------------------------------------------------------


def _fixed_scale_mixture(x: Tensor, weights: Tensor, locs: Tensor) -> Made:
    def model(x: Tensor) -> None:
        p = pyro.param("weights", lambda: weights.clone(), constraint=simplex)
        mean = pyro.param("locs", lambda: locs.clone())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(p))
            pyro.sample("x", dist.Normal(mean[z], f64(0.8)), obs=x)

    return model, (x,), {}


@_program("plate", "edge")
def single_datum() -> Made:
    return _fixed_scale_mixture(f64([0.6]), f64([0.2, 0.5, 0.3]), f64([-0.9, 0.4, 1.7]))


@_program("plate", "edge")
def single_component() -> Made:
    return _fixed_scale_mixture(f64([0.6, -0.3, 1.9]), f64([1.0]), f64([0.4]))


@_program("plate", "edge")
def single_datum_and_component() -> Made:
    return _fixed_scale_mixture(f64([0.6]), f64([1.0]), f64([0.4]))


@_program("markov", "edge")
def single_step_chain() -> Made:
    model, _, kwargs = hidden_markov()
    return model, (f64([0.4]),), kwargs


@_program("plate", "edge")
def childless_latent() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.45, 0.55]), constraint=simplex)
        idle = pyro.param("idle", f64([[0.1, 0.6, 0.3], [0.5, 0.3, 0.2]]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.8, 1.3]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("unused", dist.Categorical(idle[z]))
            pyro.sample("x", dist.Normal(locs[z], f64(0.9)), obs=x)

    return model, (f64([0.2, -0.9, 1.6]),), {}


@_program("global", "edge")
def prior_only() -> Made:
    """No data at all: the log evidence is zero and the posterior is the prior."""

    def model() -> None:
        p = pyro.param("p", f64([0.3, 0.7]), constraint=simplex)
        q = pyro.param("q", f64([[0.1, 0.9], [0.6, 0.4]]), constraint=simplex)
        a = pyro.sample("a", dist.Categorical(p))
        pyro.sample("b", dist.Categorical(q[a]))

    return model, (), {}


def _left_to_right(step: Callable[[Tensor], dist.Categorical]) -> Made:
    """A chain that starts in state 0 and never goes back; the zeros are constants of the model."""
    allowed = f64([[1, 1, 0], [0, 1, 1], [0, 0, 1]])

    def model(x: Tensor) -> None:
        stay = pyro.param("stay", f64([0.6, 0.7]), constraint=unit_interval)
        locs = pyro.param("locs", f64([-0.9, 0.5, 1.8]))
        one = torch.ones(1, dtype=torch.float64)
        diagonal, above = torch.cat([stay, one]).diag(), (1 - stay).diag(1)
        trans = (diagonal + above) * allowed
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", step(trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], f64(0.8)), obs=x[t])

    return model, (f64([-0.6, -0.1, 0.9, 1.5, 0.7]),), {}


@_program("markov", "impossible")
def left_to_right_probs() -> Made:
    """Pyro clamps a probability of exactly zero to the smallest step of its dtype."""
    return _left_to_right(lambda probs: dist.Categorical(probs=probs))


@_program("markov", "impossible")
def left_to_right_logits() -> Made:
    """The logarithm of zero is minus infinity, and stays so."""
    return _left_to_right(lambda probs: dist.Categorical(logits=probs.log()))


@_program("plate", "impossible")
def impossible_states() -> Made:
    """States that some data may not take: logits of minus infinity, as data not as parameters."""

    def model(x: Tensor, allowed: Tensor) -> None:
        logits = pyro.param("logits", f64([0.4, -0.3, 0.1]))
        locs = pyro.param("locs", f64([-1.1, 0.2, 1.6]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits.masked_fill(~allowed, -torch.inf)))
            pyro.sample("x", dist.Normal(locs[z], f64(0.9)), obs=x)

    allowed = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    return model, (f64([0.3, -0.7, 1.2]), allowed), {}


@_program("plate", "float32")
def opposed_factors() -> Made:
    """Prior and likelihood contradict each other by 25 nats: too much for exp(a) @ exp(b)."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.tensor([12.3, -12.7]))
        locs = pyro.param("locs", torch.tensor([-2.5, 2.5]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(locs[z], torch.tensor(1.0)), obs=x)

    return model, (torch.tensor([5.2, 5.1, -1.9]),), {}
