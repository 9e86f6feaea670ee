"""Run the model once under the interventions of a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions import ImproperUniform
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import transform_to

from pyro_em.errors import ModelError
from pyro_em.graph.core import core_of
from pyro_em.graph.guard import JointStates

__all__ = [
    "Intervention",
    "can_enumerate",
    "draw_guide",
    "giving",
    "is_latent",
    "is_random",
    "is_subsample",
    "run",
]

Site = dict[str, Any]


def is_subsample(site: Site) -> bool:
    """Whether a sample site is a plate drawing its indices."""
    return isinstance(site["fn"], _Subsample)


def is_random(site: Site) -> bool:
    """Whether a trace node has a density: an observation, a latent or a ``pyro.factor``, not ``pyro.deterministic``."""
    return site["type"] == "sample" and not is_subsample(site) and not site["infer"].get("_deterministic")


def is_latent(site: Site) -> bool:
    """Whether a trace node is an unobserved random variable."""
    return site["type"] == "sample" and not site["is_observed"] and not is_subsample(site)


def can_enumerate(site: Site) -> bool:
    """Whether the site's distribution lists a finite support."""
    return bool(getattr(site["fn"], "has_enumerate_support", False))


@dataclass
class Intervention(Messenger):
    """What a fit changes in the model's run, and nothing else.

    Attributes:
        given: latents that are not enumerated: their values by site.
        forced: latents that would be summed out, held at one value for a check.
        subsample: indices of subsampled plates, drawn once and then repeated until this is cleared.
        reached: the last enumerable latent that the run came to.
        partial: plates whose indices were drawn at random and leave data out, with how many they show of how many.
        scales: for plates of a minibatch, the factor by which sites inside are scaled to the full data.
        enumerate_all: mark every latent with finite support, whatever the model's own ``infer`` says.
        any_state: draw latents with finite support from all of their states alike, the improbable ones too.
        joint: counts joint states in an enumerated run; ``None`` lets any number pass.
    """

    given: Mapping[str, Tensor] = field(default_factory=dict)
    forced: Mapping[str, Tensor] = field(default_factory=dict)
    subsample: dict[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    enumerate_all: bool = False
    any_state: bool = False
    partial: dict[str, tuple[int, int]] = field(default_factory=dict)
    reached: str = ""
    joint: JointStates | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self._repeat_subsample(msg)
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.scales:
                msg["scale"] = msg["scale"] * self.scales[frame.name]
        if msg["is_observed"]:
            return
        if msg["name"] in self.given:
            msg["infer"] = {**msg["infer"], "enumerate": None}
        elif can_enumerate(msg):
            self.reached = msg["name"]
            msg["infer"] = {**msg["infer"], "_is_summed": True}
            if self.enumerate_all:
                msg["infer"].update(enumerate="parallel", expand=False, num_samples=None)
            elif self.any_state and (drawn := _any_state(msg["fn"])) is not None:
                msg["value"], msg["done"] = drawn, True
        elif isinstance(core_of(msg["fn"]).fn, ImproperUniform) and msg["value"] is None:
            msg["value"], msg["done"] = _anywhere(msg["fn"]), True

    def _repeat_subsample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["value"] is not None:  # the user chose the rows
            return
        if fn.subsample_size is not None and fn.subsample_size < fn.size:
            self.partial[msg["name"]] = (fn.subsample_size, fn.size)
        if msg["name"] in self.subsample:
            msg["value"] = self.subsample[msg["name"]]

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self.subsample[msg["name"]] = msg["value"]
        elif self.joint is not None and msg["infer"].get("_enumerate_dim") is not None:
            size = msg["value"].numel() // msg["fn"].event_shape.numel()
            self.joint.add(msg["infer"]["_enumerate_dim"], size)

    def refuse_partial(self) -> None:
        """Refuse to answer for data when each run of the model would show others.

        Raises:
            ModelError: a plate drew a random part of its data.
        """
        for plate, (shown, size) in self.partial.items():
            raise ModelError(
                f"Plate {plate!r} shows a random {shown} of its {size} data in each run, so a posterior would be about "
                "rows nobody chose. Make subsample_size an argument of the model and ask again with all data, or pass "
                "the rows as subsample=."
            )


def _any_state(fn: Any) -> Tensor | None:
    """A value of each element, its states drawn alike; ``None`` where elements differ in their support."""
    try:
        support = fn.enumerate_support(expand=False)
    except NotImplementedError:  # the enumerated run says what is wrong
        return None
    states = support.reshape(-1, *fn.event_shape)
    return states[torch.randint(len(states), fn.batch_shape)]


def _anywhere(fn: Any) -> Tensor:
    """A value within two of zero in unconstrained coordinates, as Pyro starts its guides: there is no density to draw
    from.
    """
    to_support = transform_to(fn.support)
    shape = to_support.inverse_shape(fn.batch_shape + fn.event_shape)
    return to_support(4.0 * torch.rand(shape) - 2.0)


class _Give(Messenger):
    """Set the given latents.

    It stands outside :class:`EnumMessenger`, which overlooks sites that are done, and with them their dependence on
    enumerated latents.
    """

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.given = given

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.given and not msg["is_observed"]:
            msg["value"], msg["done"] = self.given[msg["name"]], True


def giving(intervention: Intervention) -> AbstractContextManager[Any]:
    """Give what there is to give; a messenger takes its time at every site of a long loop."""
    values = {**intervention.given, **intervention.forced}
    return _Give(values) if values else nullcontext()


Model = Callable[..., Any]


def run(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> poutine.Trace:
    """A plain trace: latents that are not given are drawn."""
    with poutine.trace() as tracer, giving(intervention), intervention:
        model(*args, **kwargs)
    return tracer.trace


def draw_guide(
    guide: Model, args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]
) -> tuple[poutine.Trace, Intervention]:
    """Run the guide, and hand its draws and subsamples to the model's run."""
    intervention = Intervention(scales=scales)
    drawn = run(guide, args, kwargs, intervention)
    for site in drawn.nodes.values():
        site["infer"].pop("_is_summed", None)  # sampled here, whatever its support
    intervention.given = {n: s["value"] for n, s in drawn.nodes.items() if is_latent(s)}
    return drawn, intervention
