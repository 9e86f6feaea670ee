"""What the data say about one latent of a chain over time: smoothed, filtered, predicted, in pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pyro_em.chains import ChainTables, Filtered, backward, forward, predict_next
from pyro_em.errors import ModelError
from pyro_em.graph import FactorGraph, Plate, split
from pyro_em.graph.hidden import states_of

__all__ = ["ChainPosterior", "chain_posterior"]

MAX_PAIRS = 2**28  # entries of the table of pairs: two gigabytes


@dataclass(frozen=True, eq=False)
class ChainPosterior:
    """Exact state probabilities of a latent at all times, over the plates of its chain (outermost first).

    A chain of higher order has frames of several times. There t counts frames: x_t are the data of a whole frame, the
    pairs are of neighbouring frames, and other latents of the frame have chains of their own.

    Attributes:
        names: the sites by t, T of them; for a ``DiscreteHMM``, ``site.states`` alone.
        plates: of the chain.
        tables: log-potentials of the joint states of frames, for every hub state and row.
        hub: log-potentials of the joint states of latents that all times share, shape (H, R).
        sizes: numbers of states of each frame's latents; the latent asked about is at ``position``.
        frames: the frames that have it, shape (T,).

    Source: Rabiner (1989), "A tutorial on hidden Markov models"; Zucchini, MacDonald & Langrock (2016), chapter 5.
    """

    names: tuple[str, ...]
    plates: tuple[Plate, ...]
    tables: ChainTables
    hub: Tensor
    sizes: tuple[tuple[int, ...], ...]
    position: int
    frames: Tensor

    @cached_property
    def smoothed(self) -> Tensor:
        """p(z_t | x_1 ... x_T), shape (*plates, T, K)."""
        weights = (self._by_hub + self.hub).softmax(0)
        marginal = backward(self._filtered).marginal
        return self._own((self._hubs(marginal) * weights[..., None, None]).sum(0))

    @cached_property
    def filtered(self) -> Tensor:
        """p(z_t | x_1 ... x_t), shape (*plates, T, K)."""
        weights = (self._running + self.hub.unsqueeze(-1)).softmax(0)
        return self._own((self._hubs(self._filtered.alpha) * weights.unsqueeze(-1)).sum(0))

    @cached_property
    def predicted(self) -> Tensor:
        """p(z_t | x_1 ... x_{t-1}), one step ahead, for all times but the first, shape (*plates, T - 1, K)."""
        weights = (self._running[..., :-1] + self.hub.unsqueeze(-1)).softmax(0)
        ahead = (self._hubs(predict_next(self._filtered)) * weights.unsqueeze(-1)).sum(0)
        first = ahead.new_zeros(ahead.shape[0], 1, ahead.shape[-1])
        return self._own(torch.cat([first, ahead], 1))[..., 1:, :]

    @cached_property
    def log_predictive(self) -> Tensor:
        """log p(x_t | x_1 ... x_{t-1}) in nats, shape (*plates, T): their sum over time is the log-likelihood."""
        total = (self._running + self.hub.unsqueeze(-1)).logsumexp(0)
        steps = torch.cat([total[..., :1], total.diff(dim=-1)], -1)
        if len(self.frames) < steps.shape[-1]:  # frame 0 of a DiscreteHMM has no datum
            steps = steps[..., self.frames]
        return steps.reshape(*self._shape, -1)

    @cached_property
    def pairwise(self) -> Tensor:
        """p(z_t, z_{t+1} | x), shape (*plates, T - 1, K, K).

        Raises:
            ModelError: the table would be too large; the expected number of transitions is its sum over time.
        """
        rows, count, states = self.tables.emission.shape
        if rows * count * states**2 > MAX_PAIRS:
            raise ModelError(
                f"The joint posterior of neighbours over {count} times has {rows * count * states**2:.3g} entries, "
                f"more than the limit of {MAX_PAIRS:.3g}. Ask for it on a part of the series."
            )
        groups = self.tables.transition[:, self.tables.which]
        groups = groups.repeat_interleave(rows // len(groups), 0)
        each = replace(self.tables, transition=groups, which=torch.arange(count - 1))
        pairs = self._hubs(backward(forward(each)).pairwise)
        weights = (self._by_hub + self.hub).softmax(0)
        joint = (pairs * weights[..., None, None, None]).sum(0)
        found = [self._pair(joint[:, t], t) for t in range(count - 1) if bool((self.frames == t).any())]
        return torch.stack(found, 1).reshape(*self._shape, len(found), *found[0].shape[1:])

    @property
    def _shape(self) -> list[int]:
        return [p.size for p in self.plates]

    @cached_property
    def _filtered(self) -> Filtered:
        return forward(self.tables)

    @cached_property
    def _by_hub(self) -> Tensor:
        return self._hubs(self._filtered.log_evidence)

    @cached_property
    def _running(self) -> Tensor:
        """log p(x_1 ... x_t | hub), shape (H, R, T)."""
        ahead = predict_next(self._filtered)
        emission = self.tables.emission
        first = emission[:, :1].logsumexp(-1)
        steps = (emission[:, 1:] + ahead.log()).logsumexp(-1)
        return self._hubs(torch.cat([first, steps], -1).cumsum(-1))

    def _hubs(self, table: Tensor) -> Tensor:
        return table.reshape(len(self.hub), -1, *table.shape[1:])

    def _own(self, table: Tensor) -> Tensor:
        """From joint states (R, frames, S) to those of the latent, shape (*plates, T, K)."""
        if len(set(self.sizes)) == 1:
            sizes = self.sizes[0]
            table = table[:, self.frames].reshape(len(table), len(self.frames), *sizes)
            found = table.sum([2 + i for i in range(len(sizes)) if i != self.position]) if len(sizes) > 1 else table
        else:
            found = torch.stack([self._alone(table[:, t], t) for t in self.frames.tolist()], 1)
        return found.reshape(*self._shape, *found.shape[1:])

    def _alone(self, table: Tensor, t: int) -> Tensor:
        """From joint states of one frame (R, S) to those of the latent (R, K)."""
        sizes = self.sizes[t]
        table = table[:, : torch.Size(sizes).numel()].reshape(-1, *sizes)
        others = [1 + i for i in range(len(sizes)) if i != self.position]
        return table.sum(others) if others else table

    def _pair(self, table: Tensor, t: int) -> Tensor:
        """From joint states of two frames (R, S, S) to those of the latent at both times (R, K, K)."""
        one, two = self.sizes[t], self.sizes[t + 1]
        table = table[:, : torch.Size(one).numel(), : torch.Size(two).numel()].reshape(-1, *one, *two)
        kept = {1 + self.position, 1 + len(one) + self.position}
        others = [i for i in range(1, table.dim()) if i not in kept]
        return table.sum(others) if others else table


def chain_posterior(graph: FactorGraph, name: str) -> ChainPosterior:
    """The chain that a latent belongs to."""
    for site, hidden in graph.hidden.items():
        if name == states_of(site):
            tables = hidden.chain().tables
            rows, frames, states = tables.emission.shape
            sizes = ((states,),) * frames
            zero = torch.zeros(1, rows, dtype=torch.float64)
            return ChainPosterior((name,), hidden.plates, tables, zero, sizes, 0, torch.arange(1, frames))
    if name not in graph.variables:
        raise KeyError(
            f"No enumerated latent {name!r}; the model's are {[*graph.variables, *map(states_of, graph.hidden)]}."
        )
    for chain in split(graph)[0]:
        place = next(
            ((t, i) for t, f in enumerate(chain.frames.frames) for i, v in enumerate(f) if v.name == name), None
        )
        if place is None:
            continue
        wired = chain.tables(graph)
        hub = wired.hub.expand(chain.frames.num_hubs, chain.frames.num_rows)
        having = [t for t, frame in enumerate(chain.frames.frames) if len(frame) > place[1]]
        names = tuple(chain.frames.frames[t][place[1]].name for t in having)
        at = torch.tensor(having)
        return ChainPosterior(names, chain.frames.plates, wired.tables, hub, chain.frames.sizes, place[1], at)
    raise ValueError(
        f"The latent {name!r} is not one of a chain over time. Ask for its marginal by posterior[{name!r}]."
    )
