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
from torch import Tensor

from pyro_em.chains import ChainTables, log_evidence

__all__ = ["Hidden", "hidden_of", "states_of"]


def states_of(site: str) -> str:
    """The name that the states behind a site go by."""
    return f"{site}.states"


@dataclass(frozen=True)
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


def hidden_of(fn: Any, value: Tensor) -> Hidden | None:
    """The chain behind a distribution and its data, if it is a ``DiscreteHMM``, masked or not."""
    mask: Any = None
    while isinstance(fn, MaskedDistribution):
        mask = fn._mask if mask is None else fn._mask & mask
        fn = fn.base_dist
    if not isinstance(fn, dist.DiscreteHMM):
        return None
    observation = fn.observation_dist
    density = observation.log_prob(value.unsqueeze(-1 - observation.event_dim))
    density = density if density.dim() > 1 else density.unsqueeze(0)
    transition = fn.transition_logits if fn.transition_logits.dim() > 2 else fn.transition_logits.unsqueeze(0)
    density = density.expand(*density.shape[:-2], max(density.shape[-2], transition.shape[-3]), density.shape[-1])
    batch = torch.broadcast_shapes(fn.batch_shape, density.shape[:-2])
    return Hidden(fn.initial_logits, transition, density, batch, mask)
