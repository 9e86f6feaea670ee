"""Chords in sequences of unequal length, one structure for every model of Pyro's tour of hidden Markov models.

Tones sound or not, given hidden states that follow each other. Every function draws tones `chords` (N, T, D), zeros and
ones, of which `lengths` (N,) count; `size` is the number of hidden states. Probabilities have priors, as there.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = [
    "Conductor",
    "autoregressive",
    "dynamic_network",
    "factorial",
    "fused",
    "looped",
    "neural",
    "plated",
    "raftery",
    "second_order",
]


def sticky(size: int) -> dist.Dirichlet:
    """States tend to stay."""
    return dist.Dirichlet(2.0 * torch.eye(size) + 1.5)


def looped(chords: Tensor, lengths: Tensor, size: int, batch_size: int | None = None, include_prior: bool = True):
    """A sequential plate, and plates of tones inside of the loop over time."""
    _, _, width = chords.shape
    with poutine.mask(mask=include_prior):
        moves = pyro.sample("moves", sticky(size).to_event(1))
        sounds = pyro.sample("sounds", dist.Beta(1.5, 2.5).expand([size, width]).to_event(2))
    tones = pyro.plate("tones", width, dim=-1)
    for n in pyro.plate("sequences", len(chords), batch_size):
        state = 0
        for t in pyro.markov(range(int(lengths[n]))):
            state = pyro.sample(f"x_{n}_{t}", dist.Categorical(moves[state]), infer={"enumerate": "parallel"})
            with tones:
                pyro.sample(f"y_{n}_{t}", dist.Bernoulli(sounds[state.squeeze(-1)]), obs=chords[n, t])


def plated(chords: Tensor, lengths: Tensor, size: int, batch_size: int | None = None, include_prior: bool = True):
    """All sequences at once, masked beyond their ends."""
    num, _, width = chords.shape
    with poutine.mask(mask=include_prior):
        moves = pyro.sample("moves", sticky(size).to_event(1))
        sounds = pyro.sample("sounds", dist.Beta(1.5, 2.5).expand([size, width]).to_event(2))
    tones = pyro.plate("tones", width, dim=-1)
    with pyro.plate("sequences", num, batch_size, dim=-2) as batch:
        lengths, state = lengths[batch], 0
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                state = pyro.sample(f"x_{t}", dist.Categorical(moves[state]), infer={"enumerate": "parallel"})
                with tones:
                    pyro.sample(f"y_{t}", dist.Bernoulli(sounds[state.squeeze(-1)]), obs=chords[batch, t])


def autoregressive(
    chords: Tensor, lengths: Tensor, size: int, batch_size: int | None = None, include_prior: bool = True
):
    """A tone depends on the state and on whether it sounded before."""
    num, _, width = chords.shape
    with poutine.mask(mask=include_prior):
        moves = pyro.sample("moves", sticky(size).to_event(1))
        sounds = pyro.sample("sounds", dist.Beta(1.5, 2.5).expand([size, 2, width]).to_event(3))
    tones = pyro.plate("tones", width, dim=-1)
    with pyro.plate("sequences", num, batch_size, dim=-2) as batch:
        lengths, state, sounded = lengths[batch], 0, 0
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                state = pyro.sample(f"x_{t}", dist.Categorical(moves[state]), infer={"enumerate": "parallel"})
                with tones as tone:
                    now = dist.Bernoulli(sounds[state, sounded, tone])
                    sounded = pyro.sample(f"y_{t}", now, obs=chords[batch, t]).long()


def factorial(chords: Tensor, lengths: Tensor, size: int, batch_size: int | None = None, include_prior: bool = True):
    """Two chains that meet in the tones only."""
    num, _, width = chords.shape
    with poutine.mask(mask=include_prior):
        slow = pyro.sample("slow", sticky(size).to_event(1))
        fast = pyro.sample("fast", sticky(size).to_event(1))
        sounds = pyro.sample("sounds", dist.Beta(1.5, 2.5).expand([size, size, width]).to_event(3))
    tones = pyro.plate("tones", width, dim=-1)
    with pyro.plate("sequences", num, batch_size, dim=-2) as batch:
        lengths, w, x = lengths[batch], 0, 0
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                w = pyro.sample(f"w_{t}", dist.Categorical(slow[w]), infer={"enumerate": "parallel"})
                x = pyro.sample(f"x_{t}", dist.Categorical(fast[x]), infer={"enumerate": "parallel"})
                with tones as tone:
                    pyro.sample(f"y_{t}", dist.Bernoulli(sounds[w, x, tone]), obs=chords[batch, t])


def dynamic_network(
    chords: Tensor, lengths: Tensor, size: int, batch_size: int | None = None, include_prior: bool = True
):
    """Two chains, of which one steers the other."""
    num, _, width = chords.shape
    with poutine.mask(mask=include_prior):
        slow = pyro.sample("slow", sticky(size).to_event(1))
        fast = pyro.sample("fast", sticky(size).expand_by([size]).to_event(2))
        sounds = pyro.sample("sounds", dist.Beta(1.5, 2.5).expand([size, size, width]).to_event(3))
    tones = pyro.plate("tones", width, dim=-1)
    with pyro.plate("sequences", num, batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        w = x = torch.tensor(0, dtype=torch.long)
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                w = pyro.sample(f"w_{t}", dist.Categorical(slow[w]), infer={"enumerate": "parallel"})
                x = pyro.sample(f"x_{t}", dist.Categorical(Vindex(fast)[w, x]), infer={"enumerate": "parallel"})
                with tones as tone:
                    pyro.sample(f"y_{t}", dist.Bernoulli(sounds[w, x, tone]), obs=chords[batch, t])


class Conductor(nn.Module):
    """Logits of all tones from the state, one-hot, and a convolution over the last chord."""

    def __init__(self, size: int, width: int, hidden: int = 4, channels: int = 2) -> None:
        super().__init__()
        self.size, self.width = size, width
        self.of_state = nn.Linear(size, hidden)
        self.of_chord = nn.Linear(channels * width, hidden)
        self.convolution = nn.Conv1d(1, channels, 3, padding=1)
        self.to_logits = nn.Linear(hidden, width)

    def forward(self, state: Tensor, chord: Tensor) -> Tensor:
        one_hot = chord.new_zeros((*state.shape[:-1], self.size)).scatter_(-1, state, 1)
        heard = self.convolution(chord.reshape(-1, 1, self.width)).relu().reshape((*chord.shape[:-1], -1))
        return self.to_logits((self.of_state(one_hot) + self.of_chord(heard)).relu())


def neural(
    chords: Tensor,
    lengths: Tensor,
    size: int,
    conductor: Conductor,
    batch_size: int | None = None,
    include_prior: bool = True,
):
    """A network makes the tones from the state and the chord before; every time has a plate of its own."""
    num, _, width = chords.shape
    pyro.module("conductor", conductor)
    with poutine.mask(mask=include_prior):
        moves = pyro.sample("moves", sticky(size).to_event(1))
    with pyro.plate("sequences", num, batch_size, dim=-2) as batch:
        lengths, state, chord = lengths[batch], 0, torch.zeros(width)
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                state = pyro.sample(f"x_{t}", dist.Categorical(moves[state]), infer={"enumerate": "parallel"})
                with pyro.plate(f"tones_{t}", width, dim=-1):
                    made = dist.Bernoulli(logits=conductor(state, chord))
                    chord = pyro.sample(f"y_{t}", made, obs=chords[batch, t])


def second_order(chords: Tensor, lengths: Tensor, size: int, batch_size: int | None = None):
    """The last two states choose the next; parameters without priors."""
    generator = torch.Generator().manual_seed(3)
    start = torch.rand(size, size, size, generator=generator) + 0.1
    moves = pyro.param("moves", start / start.sum(-1, keepdim=True), constraint=constraints.simplex)
    remember(chords, lengths, moves, size, batch_size)


def raftery(chords: Tensor, lengths: Tensor, size: int, batch_size: int | None = None):
    """The same, but the two states before contribute apart: a mixture of two tables."""
    generator = torch.Generator().manual_seed(3)
    starts = torch.rand(2, size, size, generator=generator) + 0.1
    starts = starts / starts.sum(-1, keepdim=True)
    last = pyro.param("last", starts[0].clone(), constraint=constraints.simplex)
    second_last = pyro.param("second_last", starts[1].clone(), constraint=constraints.simplex)
    share = pyro.param("share", torch.tensor(0.5), constraint=constraints.unit_interval)
    remember(chords, lengths, share * last + (1.0 - share) * second_last.unsqueeze(-2), size, batch_size)


def remember(chords: Tensor, lengths: Tensor, moves: Tensor, size: int, batch_size: int | None) -> None:
    num, _, width = chords.shape
    generator = torch.Generator().manual_seed(4)
    start = torch.rand(size, width, generator=generator)
    sounds = pyro.param("sounds", start, constraint=constraints.unit_interval)
    tones = pyro.plate("tones", width, dim=-1)
    with pyro.plate("sequences", num, batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        now, before = torch.tensor(0), torch.tensor(0)
        for t in pyro.markov(range(int(lengths.max())), history=2):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                law = dist.Categorical(Vindex(moves)[before, now])
                before, now = now, pyro.sample(f"x_{t}", law, infer={"enumerate": "parallel"})
                with tones:
                    pyro.sample(f"y_{t}", dist.Bernoulli(sounds[now.squeeze(-1)]), obs=chords[batch, t])


def fused(
    chords: Tensor,
    lengths: Tensor,
    size: int,
    conductor: Conductor,
    batch_size: int | None = None,
    include_prior: bool = True,
):
    """The neural model without its loop: one site whose distribution sums the states itself."""
    pyro.module("conductor", conductor)
    with poutine.mask(mask=include_prior):
        moves = pyro.sample("moves", sticky(size).to_event(1))
    with pyro.plate("sequences", len(chords), batch_size, dim=-1) as batch:
        lengths, y = lengths[batch], chords[batch]
        # The looped model draws the first state from a row of the table: here, that is a step before the first chord.
        first = torch.full((size,), -float("inf"))
        first[0] = 0
        before = nn.functional.pad(y[:, :-1], (0, 0, 1, 0))
        states = torch.arange(size).unsqueeze(-1).expand(*y.shape[:2], size, 1)
        logits = conductor(states, before.unsqueeze(-2).expand(-1, -1, size, -1))
        tones = dist.Bernoulli(logits=logits).to_event(1)
        tones = tones.mask((torch.arange(y.shape[1]) < lengths.unsqueeze(-1)).unsqueeze(-1))
        pyro.sample("y", dist.DiscreteHMM(first, moves.log(), tones), obs=y)
