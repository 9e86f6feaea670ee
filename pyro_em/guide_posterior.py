"""The posterior that a guide stands for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_em.checked import check_count
from pyro_em.graph.trace import is_latent, is_subsample
from pyro_em.posterior import ExactPosterior, Joint, as_distribution, check_names

__all__ = ["GuidePosterior", "depends_on_draws"]

Draw = Callable[[AbstractContextManager[Any]], tuple[poutine.Trace, ExactPosterior]]


@dataclass(frozen=True)
class GuidePosterior:
    """q(c) p(z | c, x): the guide's latents c, and the finite rest z summed out exactly given them.

    Args:
        draw: runs the guide once under a handler; its trace, and the exact posterior of the rest given its draws.
        trace: runs the guide alone.
        exact: the posterior with all latents summed out; raises where some cannot be.
        active: puts the fitted parameters in place.
    """

    draw: Draw
    trace: Callable[[], poutine.Trace]
    exact: Callable[[], ExactPosterior]
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
        """Joint draws: by site, values of shape (num_samples, *the site's shape in the model).

        Raises:
            ValueError: ``num_samples`` below one.
        """
        check_count("num_samples", num_samples)
        draws = [{**_values(drawn), **_squeezed(rest)} for drawn, rest in self._draws(num_samples)]
        return {name: torch.stack([d[name] for d in draws]) for name in draws[0]}

    def joint(self, *names: str) -> Joint:
        """The joint posterior of latents that are summed out, averaged over the guide's draws.

        Raises:
            KeyError: a latent that the guide samples; use :meth:`sample` for those.
            ValueError: no names, or one of them twice.
        """
        check_names(names)
        tables = [posterior.joint(*names) for _, posterior in self._draws(NUM_DRAWS)]
        return replace(tables[0], probs=torch.stack([table.probs for table in tables]).mean(0))

    def map(self) -> dict[str, Tensor]:
        """The guide's latents at the mode of their distributions, and the most probable rest given them."""
        with poutine.block(), self.active():
            drawn, rest = self.draw(_AtMode())
        return {**_values(drawn), **rest.map()}

    @property
    def log_evidence(self) -> float:
        """Exact log p(x; params), total nats.

        Raises:
            ValueError: some latent is continuous, so that only a bound is known: the fit's objective.
        """
        return self._all_summed_out.log_evidence

    @property
    def log_likelihoods(self) -> dict[str, Tensor]:
        """Exact log p(x_n; params) by outermost data plate; raises as :attr:`log_evidence` does."""
        return self._all_summed_out.log_likelihoods

    @property
    def log_likelihood(self) -> Tensor:
        """Exact log p(x_n; params) for each datum; raises as :attr:`log_evidence` does."""
        return self._all_summed_out.log_likelihood

    @cached_property
    def _all_summed_out(self) -> ExactPosterior:
        with poutine.block(), self.active():
            return self.exact()

    def _depends_on_draws(self, name: str) -> bool:
        """Whether another draw of the guide feeds the site's distribution, by tracking values through the guide."""
        with poutine.block(), self.active(), TrackProvenance():
            drawn = self.trace()
        return depends_on_draws(drawn, name)

    def _draws(self, count: int) -> list[tuple[poutine.Trace, ExactPosterior]]:
        with poutine.block(), self.active():
            return [self.draw(nullcontext()) for _ in range(count)]


def depends_on_draws(drawn: poutine.Trace, name: str) -> bool:
    """Whether another draw feeds a site's distribution, in a trace under ``TrackProvenance``."""
    site = drawn.nodes[name]
    upstream = get_provenance(site["fn"].log_prob(detach_provenance(site["value"])))
    return any(is_latent(drawn.nodes[n]) for n in upstream if n in drawn.nodes)


NUM_DRAWS = 100


class _AtMode(Messenger):
    """Set each latent to the mode of its distribution (the mean, where torch knows no mode)."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg):
            return
        try:
            msg["value"] = msg["fn"].mode
        except NotImplementedError:
            msg["value"] = msg["fn"].mean
        msg["done"] = True


def _values(drawn: poutine.Trace) -> dict[str, Tensor]:
    return {
        n: s["value"].detach() for n, s in drawn.nodes.items() if is_latent(s) and not s["infer"].get("is_auxiliary")
    }


def _squeezed(posterior: ExactPosterior) -> dict[str, Tensor]:
    return {name: value.squeeze(0) for name, value in posterior.sample(1).items()}


def _empirical_shape(draws: Tensor, event_dim: int) -> tuple[int, ...]:
    batch = draws.shape[1 : draws.dim() - event_dim]
    return (*batch, draws.shape[0])
