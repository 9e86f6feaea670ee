"""Run the fitted model forwards: as a guide of its own posterior, and as a source of replicated data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_em.graph import FactorGraph, Plate
from pyro_em.graph.hidden import emitted, states_of
from pyro_em.graph.trace import Intervention, is_subsample, run
from pyro_em.posterior import ExactPosterior
from pyro_em.strategy import Inference

__all__ = ["emit", "posterior_guide", "predict"]


def emit(posterior: ExactPosterior) -> None:
    """Sample every latent of an exact posterior by ``pyro.sample``, jointly.

    Each enumerated site is a point mass at its draw whose log-density is the draw's conditional log-probability, so the
    sites' log-densities add up to log q(z | x), under the scale that the site has in the model, one for each datum or
    one for all. Where elements of a plate have scales of their own, latents outside that plate are still drawn from a
    posterior that counts each element once.
    """
    values, log_probs = posterior.sample_with_log_prob(1)
    graph = posterior.graph
    for name, value in values.items():
        value = value.squeeze(0)
        if name in log_probs:
            layout = graph.layout[name]
            plates = dict(zip(layout.plate_dims, graph.variables[name].plates, strict=True))
            scale = _scale(graph, name, plates)
            fn = dist.Delta(value, log_density=log_probs[name].squeeze(0), event_dim=layout.support.dim() - 1)
        else:
            plates, scale = graph.priors[name].plates, 1.0
            fn = dist.Delta(value, event_dim=graph.priors[name].event_dim)
        with ExitStack() as stack:
            for dim, plate in plates.items():  # pyro.plate would add a site of its own for each latent
                stack.enter_context(IndepMessenger(plate.name, plate.size, dim))
            stack.enter_context(poutine.scale(scale=scale))
            pyro.sample(name, fn)


def _scale(graph: FactorGraph, name: str, plates: Mapping[int, Plate]) -> float | Tensor:
    """What multiplies a latent's log-density in the model, broadcast over its batch shape."""
    scale: float | Tensor = next(f.scale for f in graph.factors if f.name == name)
    for dim, plate in plates.items():
        if plate.name in graph.weights:
            scale = scale * graph.weights[plate.name].reshape(-1, *[1] * (-dim - 1))
    return scale


def posterior_guide(inference: Inference, use: Callable[[], AbstractContextManager[Any]]) -> Callable[..., None]:
    """A guide that samples the fitted posterior given the model's arguments."""

    def guide(*args: Any, **kwargs: Any) -> None:
        with use():
            inference.sample(args, kwargs)

    return guide


class _Redraw(Messenger):
    """Fix latents at a posterior draw and draw the observed sites anew."""

    def __init__(self, latents: dict[str, Tensor]) -> None:
        super().__init__()
        self.latents = latents

    def _pyro_sample(self, msg: Any) -> None:
        if is_subsample(msg):
            return
        if msg["name"] in self.latents:
            msg["value"], msg["done"] = self.latents[msg["name"]], True
        elif states_of(msg["name"]) in self.latents:
            msg["value"], msg["done"] = emitted(msg["fn"], self.latents[states_of(msg["name"])]), True
        elif msg["is_observed"] and not is_constant(msg):
            msg["is_observed"], msg["value"] = False, None


def is_constant(site: dict[str, Any]) -> bool:
    """Whether an observed site is not data: ``pyro.deterministic`` or ``pyro.factor``."""
    return bool(site["infer"].get("_deterministic")) or type(site["fn"]).__name__ == "Unit"


def predict(
    model: Callable[..., Any], inference: Inference, args: tuple[Any, ...], kwargs: dict[str, Any], num_samples: int
) -> dict[str, Tensor]:
    """Draws of every site, by name: (num_samples, *shape); see :meth:`pyro_em.FitResult.predict`."""
    with torch.no_grad():
        seen = run(model, args, kwargs, Intervention())
        data = [n for n in seen.observation_nodes if not is_constant(seen.nodes[n])]
        posterior = inference.posterior(args, kwargs) if data else None
        draws = inference.shared(args, kwargs, num_samples) if posterior is None else posterior.sample(num_samples)
        runs = [_replicate(model, args, kwargs, {n: v[i] for n, v in draws.items()}) for i in range(num_samples)]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _replicate(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], latents: dict[str, Tensor]
) -> dict[str, Tensor]:
    with poutine.trace() as tracer, _Redraw(latents):
        model(*args, **kwargs)
    sites = {n: s for n, s in tracer.trace.nodes.items() if s["type"] == "sample" and not is_subsample(s)}
    return {n: s["value"] for n, s in sites.items() if type(s["fn"]).__name__ != "Unit"}
