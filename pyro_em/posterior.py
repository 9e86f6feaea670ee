"""What the data say about the latents, once the parameters are fitted.

:class:`ExactPosterior` answers from the factor graph: marginals and joints are gradients of the log evidence, the joint
maximum and joint draws come from the same elimination in other arithmetic.

Data that no state explains (log p = -inf) have no posterior: theirs is NaN, and that of all others is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_em.chain_posterior import ChainPosterior, chain_posterior
from pyro_em.checked import check_count
from pyro_em.graph import (
    Dim,
    Factor,
    FactorGraph,
    Term,
    Variable,
    clique_posteriors,
    log_evidence_terms,
    maximise,
    refuse_impossible,
    sample,
)
from pyro_em.graph.core import core_of
from pyro_em.graph.hidden import states_of

__all__ = ["ExactPosterior", "Joint", "as_distribution", "check_names"]


@dataclass(frozen=True)
class Joint:
    """A joint table over several latents.

    Attributes:
        names: the sites, in the order of the trailing axes.
        probs: shape (*batch shape in the model, *number of states of each site); sums to one over the trailing axes,
            and is NaN for impossible data.
        supports: the values of each site's states.
    """

    names: tuple[str, ...]
    probs: Tensor
    supports: tuple[Tensor, ...]


@dataclass(frozen=True)
class ExactPosterior:
    """p(z | x) of every enumerated latent, exact, and point masses at the estimates of the global ones.

    Each datum is there once, and every density counts as it is: weights and ``poutine.scale`` say how much the data
    weigh in a fit, and count in ``log_evidence`` alone.

    Args:
        graph: the model at the fitted parameters and the data asked about.
        estimates: values of point-estimated latents.
    """

    graph: FactorGraph
    estimates: Mapping[str, Tensor]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all latents; the states behind a ``DiscreteHMM`` site go by ``site.states``."""
        return (*self.graph.variables, *map(states_of, self.graph.hidden), *self.estimates)

    def __getitem__(self, name: str) -> dist.TorchDistribution:
        """The marginal posterior of a site, in the plate shape the site has in the model.

        Categorical, Bernoulli and OneHotCategorical latents come back as what they are; other finite supports as a
        Categorical over the numbers 0, 1, ... of their states; point estimates as Delta. Probabilities of impossible
        data, whose ``log_likelihood`` is -inf, are NaN.

        Raises:
            KeyError: no latent of that name.
        """
        if name in self.estimates:
            value = self.estimates[name]
            return dist.Delta(value).to_event(value.dim())
        if name in map(states_of, self.graph.hidden):
            return as_distribution(self.chain(name).smoothed, None)
        return as_distribution(self.marginal(name), self.graph.layout[name].fn)

    def chain(self, name: str) -> ChainPosterior:
        """All times of the chain that a latent belongs to: smoothed, filtered and predicted probabilities.

        Args:
            name: a latent at any time, such as ``"z_0"``; ``"site.states"`` for a ``DiscreteHMM``.

        Raises:
            KeyError: no latent of that name.
            ValueError: it is not part of a chain.
        """
        return chain_posterior(self._unweighted, name)

    def joint(self, *names: str) -> Joint:
        """The joint posterior of latents whose plates are nested, neighbours or not; exact.

        Raises:
            KeyError: no latent of that name.
            ValueError: no names, or one of them twice; plates that are not nested; the states of a ``DiscreteHMM``.
            ModelError: the table over what lies between them would be too large.
        """
        check_names(names)
        hidden = [name for name in names if name in map(states_of, self.graph.hidden)]
        if hidden:
            raise ValueError(
                f"The states {hidden[0]!r} of a DiscreteHMM have joints of neighbours in time only, of shape "
                f"(*plates, T - 1, K, K): ask for chain({hidden[0]!r}).pairwise."
            )
        variables = tuple(self._variable(name) for name in names)
        plates = max((v.plates for v in variables), key=len, default=())
        if any(not set(v.plates) <= set(plates) for v in variables):
            raise ValueError(f"The plates of {list(names)} are not nested, so their joint is not one table per datum.")
        dims: tuple[Dim, ...] = (*plates, *variables)
        probe = Factor(f"joint{names}", plates, variables, torch.zeros([d.size for d in dims], dtype=torch.float64))
        table = _possible(clique_posteriors(self._unweighted.with_factors(probe)).weights[-1], len(variables))
        deepest = next(v.name for v in variables if v.plates == plates)
        probs = self.graph.layout[deepest].to_model(table, trailing=len(variables))
        return Joint(names, probs, tuple(self.graph.layout[name].support for name in names))

    def map(self) -> dict[str, Tensor]:
        """The most probable joint assignment of all latents (Viterbi, for a chain), values in the model's shapes.

        Raises:
            ModelError: some data are impossible; it says how many, and the first of them.
        """
        self._refuse_impossible_paths()
        states = maximise(self._unweighted)
        found = {name: self.graph.layout[name].values(states[name]) for name in self.graph.variables}
        paths = {states_of(n): h.chain().best() for n, h in self.graph.hidden.items()}
        return {**found, **paths, **self.estimates}

    def sample(self, num_samples: int = 1) -> dict[str, Tensor]:
        """Joint draws: by site, values of shape (num_samples, *the site's shape in the model).

        Raises:
            ValueError: ``num_samples`` below one.
            ModelError: some data are impossible; it says how many, and the first of them.
        """
        check_count("num_samples", num_samples)
        self._refuse_impossible_paths()
        paths = {states_of(n): h.chain().draw(num_samples) for n, h in self.graph.hidden.items()}
        return {**self.sample_with_log_prob(num_samples)[0], **paths}

    def sample_with_log_prob(self, num_samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Joint draws of the model's own latents and, by enumerated site, log-probabilities that add up to theirs."""
        states, log_probs = sample(self._unweighted, num_samples)
        layout = self.graph.layout
        values = {n: layout[n].values(states[n]) for n in self.graph.variables}
        fixed = {n: v.expand(num_samples, *v.shape) for n, v in self.estimates.items()}
        return {**values, **fixed}, {n: layout[n].to_model(log_probs[n]) for n in self.graph.variables}

    @cached_property
    def log_evidence(self) -> float:
        """log p(x; params), latents summed out, total nats; densities of point estimates not counted."""
        terms = _terms(self.graph)
        return float(sum(term.scaled.sum() for term in terms) if terms else 0.0)

    @cached_property
    def log_likelihoods(self) -> dict[str, Tensor]:
        """For each outermost data plate, log p(x_n; params) of its elements, latents summed out, float64.

        They are densities of the data, whatever ``poutine.scale`` the model is under; without one their sum is
        ``log_evidence``.

        Raises:
            ValueError: a latent is shared by all data, so that log p(x) is no sum over data.
        """
        shared = [v.name for v in self.graph.variables.values() if not v.plates]
        if shared and any(f.plates for f in self.graph.factors):
            raise ValueError(
                f"The latents {shared} are shared by all data, so log p(x) is not a sum of one term per datum. "
                "Use log_evidence, or condition the model on those latents."
            )
        found: dict[str, Tensor] = {}
        for term in _terms(self._unweighted):
            name = term.plates[0].name if term.plates else ""
            value = term.table.reshape(term.plates[0].size, -1).sum(1) if term.plates else term.table.reshape(1)
            found[name] = found[name] + value if name in found else value
        return found

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x_n; params) for each element of the outermost data plate; without a plate, one value.

        Raises:
            ValueError: the data lie in several plates side by side, or a latent is shared by all of them.
        """
        found = self.log_likelihoods
        if len(found) != 1:
            raise ValueError(
                f"The data lie in {len(found)} plates {sorted(found)}; ask log_likelihoods[plate] for one."
            )
        return next(iter(found.values()))

    @cached_property
    def _unweighted(self) -> FactorGraph:
        factors = tuple(replace(f, scale=1.0) for f in self.graph.factors)
        return replace(self.graph, weights={}, factors=factors)

    @cached_property
    def _cliques(self) -> tuple[Tensor, ...]:
        return clique_posteriors(self._unweighted).weights

    def _refuse_impossible_paths(self) -> None:
        for factor in self.graph.factors:
            if factor.name in self.graph.hidden and not factor.scope:
                refuse_impossible(states_of(factor.name), factor.table, factor.plates)

    def _variable(self, name: str) -> Variable:
        if name not in self.graph.variables:
            raise KeyError(f"No enumerated latent {name!r}; the model's latents are {list(self.sites)}.")
        return self.graph.variables[name]

    def marginal(self, name: str) -> Tensor:
        """Probabilities of an enumerated latent's states, shape (*batch shape in the model, states)."""
        variable = self._variable(name)
        at = next(i for i, f in enumerate(self.graph.factors) if f.name == variable.name)
        factor, weight = self.graph.factors[at], self._cliques[at]
        others = [weight.dim() - len(factor.scope) + i for i, v in enumerate(factor.scope) if v != variable]
        table = weight.sum(others) if others else weight
        return self.graph.layout[variable.name].to_model(_possible(table, 1), trailing=1)


def _terms(graph: FactorGraph) -> list[Term]:
    with torch.no_grad():
        return log_evidence_terms(graph)


def _possible(table: Tensor, trailing: int) -> Tensor:
    """Probabilities over the trailing axes, NaN where they are all zero: nothing is possible there."""
    total = table.sum(list(range(-trailing, 0)), keepdim=True)
    return torch.where(total > 0, table, torch.nan)


def check_names(names: tuple[str, ...]) -> None:
    """Refuse what names no joint.

    Raises:
        ValueError: no names, or one of them twice.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"A joint is one of latents by name, each once; got {list(names)}. Write joint('z_0', 'z_1'), with names "
            "of the posterior's sites."
        )


def as_distribution(probs: Tensor, fn: Any) -> dist.TorchDistribution:
    """State probabilities as the kind of distribution the model's site ``fn`` is; rows of NaN may be among them."""
    if not bool(probs.isnan().any()):
        return _of_kind(probs, fn)
    with pyro.validation_enabled(False):  # for one row of NaN torch refuses all rows
        return _of_kind(probs, fn)


def _of_kind(probs: Tensor, fn: Any) -> dist.TorchDistribution:
    fn = core_of(fn).fn
    if isinstance(fn, torch.distributions.Bernoulli):
        return dist.Bernoulli(probs=probs[..., 1].clamp(0.0, 1.0))
    if isinstance(fn, torch.distributions.OneHotCategorical):
        return dist.OneHotCategorical(probs=probs)
    return dist.Categorical(probs=probs)
