"""What kind of sites a model has, read off one plain run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.axes import unknown_axis
from pyro_em.graph.build import broadcast, plates_of, site_log_prob
from pyro_em.graph.trace import Intervention, Model, Site, can_enumerate, is_latent, is_random, run

__all__ = ["Survey", "plate_nesting", "survey"]


@dataclass(frozen=True)
class Survey:
    """The roles of a model's sites.

    Attributes:
        trace: the plain run; its latents are draws from the model.
        max_plate_nesting: dimensions taken by plates.
        enumerated: latents with finite support, to be summed out.
        others: latents that must be given (a point estimate or a guide's draw).
        imputed: the unobserved halves of ``obs_mask`` sites, whose density integrates to one.
        data_plates: plates that hold an observation or an enumerated latent.
        params: names of the parameters the model used.
        subsampled: plates that see a random part of their data in each run.
    """

    trace: poutine.Trace
    max_plate_nesting: int
    enumerated: tuple[str, ...]
    others: tuple[str, ...]
    imputed: frozenset[str]
    data_plates: frozenset[str]
    params: tuple[str, ...]
    subsampled: tuple[str, ...]

    def site(self, name: str) -> Site:
        """The trace node of a site."""
        return self.trace.nodes[name]

    @property
    def has_missing(self) -> bool:
        """Whether an observation holds NaN or infinities (under a mask, or the run would have failed)."""
        observed = [s["value"] for s in self.trace.nodes.values() if s["type"] == "sample" and s["is_observed"]]
        return any(not bool(v.isfinite().all()) for v in observed if isinstance(v, Tensor) and v.is_floating_point())

    @property
    def widest(self) -> int:
        """The most numbers that any site holds, in its value or its events."""
        sites = [s for s in self.trace.nodes.values() if is_random(s)]
        return max(max(_count(s["value"]), (s["fn"].batch_shape + s["fn"].event_shape).numel()) for s in sites)

    def data_plate_of(self, name: str) -> str | None:
        """A data plate that holds the site, or ``None`` for a global one."""
        frames = [f.name for f in self.site(name)["cond_indep_stack"]]
        return next((f for f in frames if f in self.data_plates), None)


def survey(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> Survey:
    """Run the model once and sort its sites.

    Raises:
        ModelError: a site has a batch dimension that no plate declares.
    """
    with torch.no_grad():
        trace = run(model, args, kwargs, intervention)
        latents = {n: s for n, s in trace.nodes.items() if is_latent(s) and n not in intervention.given}
        imputed = frozenset(n for n, s in latents.items() if not can_enumerate(s) and _is_imputed(n, trace))
        enumerated = tuple(n for n, s in latents.items() if can_enumerate(s))
        summed = set(enumerated)
        result = Survey(
            trace=trace,
            max_plate_nesting=plate_nesting(trace),
            enumerated=enumerated,
            others=tuple(n for n in latents if n not in summed and n not in imputed),
            imputed=imputed,
            data_plates=_data_plates(trace, summed),
            params=tuple(n for n, s in trace.nodes.items() if s["type"] == "param"),
            subsampled=tuple(intervention.partial),
        )
        for name, site in trace.nodes.items():
            if is_random(site):
                _check_batch_shape(name, site)
    return result


def _count(value: object) -> int:
    return value.numel() if isinstance(value, Tensor) else 1


def _is_imputed(name: str, trace: poutine.Trace) -> bool:
    stem = name.removesuffix("_unobserved")
    return stem != name and f"{stem}_observed" in trace.nodes and stem in trace.nodes


def plate_nesting(trace: poutine.Trace) -> int:
    """How many dimensions, on the right, the plates of a run take."""
    frames = [f for s in trace.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"]]
    return max((-f.dim for f in frames if f.vectorized), default=0)


def _data_plates(trace: poutine.Trace, enumerated: set[str]) -> frozenset[str]:
    return frozenset(
        frame.name
        for name, site in trace.nodes.items()
        if is_random(site)
        for frame in site["cond_indep_stack"]
        if name in enumerated or (site["is_observed"] and type(site["fn"]).__name__ != "Unit")
    )


def _check_batch_shape(name: str, site: Site) -> None:
    """Without this check an undeclared batch dimension could line up with an enumerated one and be summed over."""
    shape = _density_shape(site)
    plates = plates_of(site, shape)
    for position, size in enumerate(shape):
        dim = position - len(shape)
        if size > 1 and dim not in plates:
            raise ModelError(unknown_axis(name, shape, dim, plates))


def _density_shape(site: Site) -> torch.Size:
    """The shape of the site's log-probability, without evaluating it where that is the distribution's own."""
    fn, value = site["fn"], site["value"]
    if type(fn).__module__.startswith(("pyro.distributions", "torch.distributions")) and not site["args"]:
        return broadcast(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
    return site_log_prob(site).shape
