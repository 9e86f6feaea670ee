"""Documents of words: one latent class a document, one draw a word, documents of any length.

    z_d                ~ Categorical(weights)                  d = 1 ... D documents
    w_{d,i} | z_d = k  ~ Categorical(probs[k])                 i = 1 ... I_d words

    log p(w) = sum_d log sum_k weights[k] prod_i probs[k, w_{d,i}]

The words' plate is nested in the documents'. A multinomial mixture sees the same data as counts: its
log-likelihood is larger by the sum of the log multinomial coefficients, its maximum the same. Here
the documents are 516 households and the words the brands of margarine that they bought.

Source: Nigam, McCallum, Thrun & Mitchell (2000), Machine Learning 39, 103-134. Data: as
`multinomial_mixture`.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from models import multinomial_mixture

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

TRUTH = multinomial_mixture.TRUTH  # what `simulate` draws from


def model(words: Tensor, vocabulary: int = 10, num_classes: int = 2) -> Tensor:
    """Draw the `words` (D, I), integers in 0 ... V - 1, or -1 beyond a document's end; return classes (D, 1).

    Parameters: `weights` (K,) and the rows of `probs` (K, V) on the simplex.
    """
    K = num_classes
    weights = pyro.param("weights", torch.full((K,), 1 / K, dtype=torch.float64), constraint=constraints.simplex)
    probs = pyro.param("probs", lambda: start_probs(words, vocabulary, K), constraint=constraints.simplex)
    with pyro.plate("documents", len(words), dim=-2):
        z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("words", words.shape[-1], dim=-1), poutine.mask(mask=words >= 0):
            pyro.sample("word", dist.Categorical(probs[z]), obs=words.clamp(min=0))
    return z


def start_probs(words: Tensor, vocabulary: int, num_classes: int) -> Tensor:
    """That of the same data as counts."""
    return multinomial_mixture.start_probs(count(words, vocabulary), num_classes)


def count(words: Tensor, vocabulary: int) -> Tensor:
    """How often each document has each word, (D, V)."""
    counts = torch.zeros(len(words), vocabulary, dtype=torch.float64)
    return counts.scatter_add_(1, words.clamp(min=0), (words >= 0).double())


def spell(counts: Tensor) -> Tensor:
    """The words that were counted, in order of the vocabulary, -1 beyond each end."""
    totals = counts.sum(-1).long()
    words = torch.full((len(counts), int(totals.max())), -1)
    for row, counted in zip(words, counts.long(), strict=True):
        row[: counted.sum()] = torch.arange(len(counted)).repeat_interleave(counted)
    return words


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` has finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Purchases of margarine, one row a household, (516, most purchases of one)."""
    return (spell(*multinomial_mixture.load()),)


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor]:
    """`num` documents of 3 to 9 words drawn at `TRUTH`; the global generator is left alone."""
    return (spell(*multinomial_mixture.simulate(num, seed)),)
