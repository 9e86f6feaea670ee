"""The posterior that a guide stands for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance
from torch import Tensor

from pyro_em.graph.trace import is_latent
from pyro_em.posterior import ExactPosterior, as_distribution

__all__ = ["GuidePosterior"]

Draw = Callable[[], tuple[poutine.Trace, ExactPosterior]]


@dataclass(frozen=True)
class GuidePosterior:
    """q(c) p(z | c, x): the guide's latents c, and the finite rest z summed out exactly given them.

    Args:
        draw: runs the guide once; its trace, and the exact posterior of the rest given its draws.
        trace: runs the guide alone.
        active: puts the fitted parameters in place.
    """

    draw: Draw
    trace: Callable[[], poutine.Trace]
    active: Callable[[], AbstractContextManager[Any]]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all latents."""
        drawn, rest = self._draws(1)[0]
        return (*_values(drawn), *rest.sites)

    def __getitem__(self, name: str) -> dist.TorchDistribution:
        """The posterior of one site, in its plate shape.

        A site of the guide that depends on none of its other draws comes back as the guide's own distribution (so it is
        for an amortised mean-field guide); one that does, as an Empirical over draws. A latent that is summed out is
        averaged over the guide's draws.

        Raises:
            KeyError: no latent of that name.
        """
        drawn, rest = self._draws(1)[0]
        if name in _values(drawn):
            fn = drawn.nodes[name]["fn"]
            if not isinstance(fn, dist.Delta) and not self._depends_on_draws(name):
                return fn
            draws = self.sample(NUM_DRAWS)[name]
            return dist.Empirical(
                draws.movedim(0, -1 - fn.event_dim), torch.zeros(_empirical_shape(draws, fn.event_dim))
            )
        if name not in rest.sites:
            raise KeyError(f"No latent {name!r}; the model's latents are {list(self.sites)}.")
        tables = [posterior.marginal(name) for _, posterior in self._draws(NUM_DRAWS)]
        return as_distribution(torch.stack(tables).mean(0), rest.graph.layout[name].fn)

    def sample(self, num_samples: int = 1) -> dict[str, Tensor]:
        """Joint draws: by site, values of shape (num_samples, *the site's shape in the model)."""
        draws = [{**_values(drawn), **_squeezed(rest)} for drawn, rest in self._draws(num_samples)]
        return {name: torch.stack([d[name] for d in draws]) for name in draws[0]}

    def _depends_on_draws(self, name: str) -> bool:
        """Whether another draw of the guide feeds the site's distribution, by tracking values through the guide."""
        with self.active(), poutine.block(), TrackProvenance():
            drawn = self.trace()
        site = drawn.nodes[name]
        upstream = get_provenance(site["fn"].log_prob(detach_provenance(site["value"])))
        return any(is_latent(drawn.nodes[n]) for n in upstream if n in drawn.nodes)

    def _draws(self, count: int) -> list[tuple[poutine.Trace, ExactPosterior]]:
        with self.active(), poutine.block():
            return [self.draw() for _ in range(count)]


NUM_DRAWS = 100


def _values(drawn: poutine.Trace) -> dict[str, Tensor]:
    return {
        n: s["value"].detach() for n, s in drawn.nodes.items() if is_latent(s) and not s["infer"].get("is_auxiliary")
    }


def _squeezed(posterior: ExactPosterior) -> dict[str, Tensor]:
    return {name: value.squeeze(0) for name, value in posterior.sample(1).items()}


def _empirical_shape(draws: Tensor, event_dim: int) -> tuple[int, ...]:
    batch = draws.shape[1 : draws.dim() - event_dim]
    return (*batch, draws.shape[0])
