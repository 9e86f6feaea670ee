"""Topics of documents: shares of topics for every document, as Pyro's example has them, and as plain parameters.

`words` is (words per document, documents), the position of each word in the vocabulary.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = ["Reader", "amortised", "shares", "topics"]


def topics(words: Tensor, size: int, vocabulary: int, reader: nn.Module | None = None) -> Tensor:
    """Shares of topics are drawn for every document; topics and their popularity are drawn, too."""
    with pyro.plate("topics", size):
        popularity = pyro.sample("popularity", dist.Gamma(torch.tensor(1.5), 1.0))
        lexicon = pyro.sample("lexicon", dist.Dirichlet(torch.full((vocabulary,), 1.5)))
    with pyro.plate("documents", words.shape[1]) as chosen:
        own = pyro.sample("own", dist.Dirichlet(popularity))
        with pyro.plate("words", len(words)):
            topic = pyro.sample("topic", dist.Categorical(own), infer={"enumerate": "parallel"})
            return pyro.sample("word", dist.Categorical(lexicon[topic]), obs=words[:, chosen])


class Reader(nn.Module):
    """Shares of topics from counts of words."""

    def __init__(self, vocabulary: int, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(vocabulary, 6), nn.Sigmoid(), nn.Linear(6, size), nn.Softmax(dim=-1))

    def forward(self, counts: Tensor) -> Tensor:
        return self.layers(counts)


def amortised(words: Tensor, size: int, vocabulary: int, reader: nn.Module) -> None:
    """A guide: conjugate for what is global, a network for every document; the topic of a word is left out."""
    alphas = pyro.param("alphas", lambda: torch.ones(size), constraint=constraints.positive)
    betas = pyro.param("betas", lambda: torch.ones(size, vocabulary), constraint=constraints.greater_than(0.5))
    with pyro.plate("topics", size):
        pyro.sample("popularity", dist.Gamma(alphas, 1.0))
        pyro.sample("lexicon", dist.Dirichlet(betas))
    pyro.module("reader", reader)
    with pyro.plate("documents", words.shape[1]) as chosen:
        read = words[:, chosen]
        counts = torch.zeros(vocabulary, read.shape[1]).scatter_add(0, read, torch.ones(read.shape))
        pyro.sample("own", dist.Delta(reader(counts.T), event_dim=1))


def shares(words: Tensor, size: int, vocabulary: int) -> None:
    """The same with shares and topics as parameters: Hofmann's probabilistic latent semantic analysis."""
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(words.shape[1], size, generator=generator) + 0.5
    own = pyro.param("own", start / start.sum(-1, keepdim=True), constraint=constraints.simplex)
    start = torch.rand(size, vocabulary, generator=generator) + 0.5
    lexicon = pyro.param("lexicon", start / start.sum(-1, keepdim=True), constraint=constraints.simplex)
    with pyro.plate("documents", words.shape[1]):
        with pyro.plate("words", len(words)):
            topic = pyro.sample("topic", dist.Categorical(own), infer={"enumerate": "parallel"})
            pyro.sample("word", dist.Categorical(lexicon[topic]), obs=words)
