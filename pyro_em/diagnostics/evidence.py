"""What the diagnostics of a fit start from: its data, its free parameters, and its exact log evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph import FactorGraph, Intervention, Survey, clique_posteriors, expected_log_joint, log_evidence, survey
from pyro_em.graph.build import plates_of
from pyro_em.graph.trace import Site
from pyro_em.params import Leaf, ParamSpace
from pyro_em.strategy import Inference

__all__ = ["Fitted"]


@dataclass(frozen=True)
class Fitted:
    """A fitted model and data; the fitted parameters must be in place.

    Attributes:
        model: the user's program.
        inference: what the fit knows of its latents.
        space: its parameters.
        args, kwargs: the model's arguments.
        counts_priors: whether the fit maximised the log joint of point-estimated latents.
        is_training: whether these are the data of the fit, with their weights.
    """

    model: Callable[..., Any]
    inference: Inference
    space: ParamSpace
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    counts_priors: bool
    is_training: bool

    @property
    def data(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with."""
        return self.args, self.kwargs

    def graph(self) -> FactorGraph:
        """The model with all latents summed out or point-estimated, and the weights of the data.

        Raises:
            ModelError: there is no exact log evidence.
        """
        intervention = Intervention()
        graph: FactorGraph = self.inference.graph(self.args, self.kwargs, intervention)
        intervention.refuse_partial()
        return graph.counted(self.inference.weights) if self.is_training else graph

    def objective(self) -> Tensor:
        """log p(x), and the log-priors that count; total nats, differentiable in the leaves."""
        graph = self.graph()
        value = log_evidence(graph)
        return value + graph.log_prior() if self.counts_priors else value

    def log_evidence(self) -> float:
        """log p(x; params), total nats."""
        with torch.no_grad():
            return float(log_evidence(self.graph()))

    def entropy(self) -> float:
        """Of the posterior over finite latents, nats: -E[log p(z | x)], never negative."""
        with torch.no_grad():
            graph = self.graph().evaluated()
        cliques = clique_posteriors(graph)
        hidden = sum(h.chain().entropy(h.weights(graph.weights)) for h in graph.hidden.values())
        return max(cliques.log_evidence - float(expected_log_joint(graph, cliques.weights)), 0.0) + hidden

    def leaves(self) -> dict[str, Leaf]:
        """The model's parameters that moved, each tensor once: not those of the guide, nor fixed ones."""
        every = self.space.leaves()
        own = {id(every[n].unconstrained) for n in (*self._seen.params, *self.inference.latents()) if n in every}
        free = self.space.free(self.inference.fixed)
        distinct = self.space.distinct()
        return {n: distinct[n] for n, u in free.items() if id(u) in own and u.requires_grad}

    def num_data(self) -> float:
        """Elements of the outermost data plates, or the sum of their weights.

        Raises:
            ModelError: no plate holds the data.
        """
        plates = {}
        for site in self._seen.trace.nodes.values():
            frames = [f for f in site.get("cond_indep_stack", ()) if f.name in self._seen.data_plates]
            if frames:
                plates[frames[0].name] = _full_size(frames[0], site)
        if not plates:
            raise ModelError(
                "BIC and ICL count the elements of the outermost plate that holds data; the model has none. Put the "
                "data in `pyro.plate(...)`, or compute num_params * log(n) - 2 * log_evidence with the n you mean."
            )
        with torch.no_grad():
            weights = self.graph().weights
        return sum(float(weights[name].sum()) if name in weights else size for name, size in plates.items())

    @cached_property
    def _seen(self) -> Survey:
        return survey(self.model, self.args, self.kwargs, Intervention(given=self.inference.latents()))


def _full_size(frame: Any, site: Site) -> int:
    size = int(frame.full_size or frame.size)
    return size if size > 0 else plates_of(site, site["fn"].batch_shape)[frame.dim].size
