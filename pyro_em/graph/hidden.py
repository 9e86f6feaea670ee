"""Sites observed through a ``DiscreteHMM``: their chain of states, which the program never names.

Pyro's convention holds throughout: the first state has no observation, and a transition comes *before* each datum,

    z_0 ~ Categorical(initial_logits),    z_t ~ Categorical(transition_logits[z_{t-1}]),    x_t ~ observation_dist[z_t]

for t = 1 ... T. In the usual convention the law of the state behind the first datum is ``initial @ transition``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from pyro_em.chains import ChainTables, backward, forward, log_evidence, sample, viterbi
from pyro_em.graph.impossible import with_true_zeros

__all__ = ["Hidden", "emitted", "hidden_of", "is_hidden", "states_of", "unmasked"]


def states_of(site: str) -> str:
    """The name that the states behind a site go by."""
    return f"{site}.states"


@dataclass(frozen=True, eq=False)
class Hidden:
    """The log-potentials of a ``DiscreteHMM`` and its data.

    Attributes:
        initial: log-probabilities of the state before the first datum, shape (*batch or 1, K).
        transition: from state to state, shape (*batch or 1, T or 1, K, K).
        observation: log-densities of the data, shape (*batch or 1, T, K).
        mask: over the batch, where the site counts; ``None``, everywhere.
    """

    initial: Tensor
    transition: Tensor
    observation: Tensor
    batch: torch.Size
    mask: Tensor | None

    @cached_property
    def tables(self) -> ChainTables:
        """A chain of T + 1 frames for each element of the batch."""
        steps, states = self.observation.shape[-2:]
        rows = prod(self.batch)
        first = self.initial.unsqueeze(-2).expand(*self.batch, 1, states)
        emission = torch.cat([first, self.observation.expand(*self.batch, steps, states)], -2)
        shape = self.transition.shape
        shared = prod(shape[:-3]) == 1
        transition = self.transition if shared else self.transition.expand(*self.batch, *shape[-3:])
        which = torch.zeros(steps, dtype=torch.long) if shape[-3] == 1 else torch.arange(steps)
        return ChainTables(
            emission.reshape(rows, steps + 1, states).to(torch.float64),
            transition.reshape(1 if shared else rows, *shape[-3:]).to(torch.float64),
            which,
            None,
        )

    def log_prob(self) -> Tensor:
        """Log-density of the data, states summed out, over the batch; differentiable once."""
        t = self.tables
        value = log_evidence(t.emission, t.transition, t.which, t.lengths).reshape(self.batch)
        return value if self.mask is None else torch.where(self.mask, value, 0.0)

    def entropy(self, weights: Tensor) -> float:
        """Entropy of the paths given the data, total nats; ``weights`` (R,) says how often each row counts."""
        t = self.tables
        filtered = forward(t)
        found = backward(filtered, weights)
        pairs = [(found.marginal, t.emission), (found.pairwise, t.transition)]
        energy = sum(float((p * torch.where(p > 0, table, 0.0)).sum()) for p, table in pairs)
        return float(filtered.log_evidence @ weights) - energy

    def best(self) -> Tensor:
        """The most probable states behind the data (Viterbi), shape (*batch, T)."""
        return viterbi(self.tables)[0][:, 1:].reshape(*self.batch, -1)

    def draw(self, samples: int) -> Tensor:
        """Joint draws of the states behind the data, shape (samples, *batch, T)."""
        rows, frames, _ = self.tables.emission.shape
        uniforms = torch.rand(samples, rows, frames, dtype=torch.float64)
        return sample(forward(self.tables), uniforms)[..., 1:].reshape(samples, *self.batch, -1)


def unmasked(fn: Any) -> tuple[Any, Any]:
    """A distribution without its masks, and these together."""
    mask: Any = None
    while isinstance(fn, MaskedDistribution):
        mask = fn._mask if mask is None else fn._mask & mask
        fn = fn.base_dist
    return fn, mask


def is_hidden(fn: Any) -> bool:
    """Whether a distribution is a ``DiscreteHMM``, masked or not."""
    return isinstance(unmasked(fn)[0], dist.DiscreteHMM)


def hidden_of(fn: Any, value: Tensor) -> Hidden:
    """The chain behind a ``DiscreteHMM`` and its data."""
    fn, mask = unmasked(fn)
    observation = fn.observation_dist
    density = with_true_zeros(observation).log_prob(value.unsqueeze(-1 - observation.event_dim))
    density = density if density.dim() > 1 else density.unsqueeze(0)
    transition = fn.transition_logits if fn.transition_logits.dim() > 2 else fn.transition_logits.unsqueeze(0)
    density = density.expand(*density.shape[:-2], max(density.shape[-2], transition.shape[-3]), density.shape[-1])
    batch = torch.Size(broadcast_shape(fn.batch_shape, density.shape[:-2]))
    return Hidden(fn.initial_logits, transition, density, batch, mask)


def emitted(fn: Any, states: Tensor) -> Tensor:
    """New data of a ``DiscreteHMM`` from the states behind them, (*batch, T): shape (*batch, T, *event)."""
    observation = unmasked(fn)[0].observation_dist
    each = observation.expand([*states.shape, observation.batch_shape[-1]]).sample()
    index = states.reshape(*states.shape, 1, *[1] * observation.event_dim)
    return each.gather(states.dim(), index.expand(*states.shape, 1, *observation.event_shape)).squeeze(states.dim())
