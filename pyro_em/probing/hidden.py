"""A ``DiscreteHMM`` site as the three stacks of a chain: the first state, the transitions, the data.

Each is read as the site that a program would have written out. See :mod:`pyro_em.graph.hidden` for the convention:
frame 0 has a state and no datum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_em.graph.build import Structure, plates_of, variable_dims
from pyro_em.graph.factor import Plate, Variable
from pyro_em.graph.frames import Frames, Seat
from pyro_em.graph.hidden import states_of, unmasked
from pyro_em.graph.trace import Site
from pyro_em.probing.apart import read, take_apart
from pyro_em.probing.sites import SiteParts, Stack
from pyro_em.probing.stacks import in_order

__all__ = ["hidden_parts"]


@dataclass(frozen=True)
class _Chain:
    """What the stacks of one site share: the site, where its masks let it count, its frames and its variables."""

    name: str
    site: Site
    mask: Any
    frames: Frames
    now: Variable
    before: Variable

    def stack(self, part: str, fn: Any, value: Tensor, variables: list[Variable], at: Tensor) -> SiteParts | str:
        """One stack, read as if it were a site.

        Args:
            fn: over (*batch, time, *variables).
            variables: the last batch dimensions; a latent's own variable is the last, over its values.
            at: the frames.
        """
        own, shift = part != "data", len(variables) + 1
        outer = [f._replace(dim=f.dim - shift) for f in self.site["cond_indep_stack"] if f.vectorized]
        time = CondIndepStackFrame(f"time of {self.name}", -shift, len(at), 0)
        dims = {i - len(variables): v for i, v in enumerate(variables)}
        virtual = {
            **self.site,
            "fn": fn,
            "value": value,
            "cond_indep_stack": (*outer, time),
            "mask": None if own or self.mask is None else torch.as_tensor(self.mask)[(..., *[None] * shift)],
            "is_observed": not own,
            "infer": {"_dim_to_id": {dim: i for i, dim in enumerate(dims)}},
        }
        key = f"{self.name} ({part})"
        known = Structure({}, dict(enumerate(dims.values())), {key: self.now} if own else {}, {})
        raw = read(key, virtual, known)
        if isinstance(raw, str):
            return raw
        seat = Seat(tuple((1 if v is self.now else 2, 0) for v in variables), 1)
        parts = in_order(take_apart([raw]), seat)
        scope = tuple(replace(v, plates=parts.plates) for v in parts.scope)
        located = Stack(self.frames, parts.plates[-1], (self.name,), at, tuple(sorted(seat.axes)))
        return replace(parts, scope=scope, own=scope[0] if own else None, stack=located)


def hidden_parts(name: str, site: Site, found: Structure) -> dict[str, SiteParts | str]:
    """The three stacks by name; or, under the site's own name, why there are none."""
    fn, mask = unmasked(site["fn"])
    if any(-dim <= len(fn.batch_shape) and fn.batch_shape[dim] > 1 for dim in variable_dims(site, found)):
        return {name: "its DiscreteHMM depends on a latent"}
    if site["mask"] is not None and site["mask"] is not True:
        mask = site["mask"] if mask is None else mask & site["mask"]
    value = site["value"].unsqueeze(-1 - fn.observation_dist.event_dim)
    batch = value.shape[: value.dim() - fn.observation_dist.event_dim]
    shapes = fn.observation_dist.batch_shape, batch, fn.transition_logits.shape[:-1]
    steps = max(shape[-2] for shape in shapes if len(shape) > 1)
    states = fn.initial_logits.shape[-1]
    frames = _frames(states_of(name), states, steps, tuple(plates_of(site, fn.batch_shape).values()))
    now, before = (Variable(f"{states_of(name)}{when}", states, frames.plates) for when in ("", " before"))
    chain = _Chain(name, site, mask, frames, now, before)
    first = dist.Categorical(logits=fn.initial_logits[..., None, None, :], validate_args=False)
    following = dist.Categorical(logits=fn.transition_logits.unsqueeze(-2), validate_args=False)
    labels, every = torch.arange(states), torch.arange(1, steps + 1)
    parts = {
        f"{name} (first state)": chain.stack("first state", first, labels, [now], every[:1] - 1),
        f"{name} (transition)": chain.stack("transition", following, labels, [before, now], every),
        f"{name} (data)": chain.stack("data", fn.observation_dist, value, [now], every),
    }
    reasons = [p for p in parts.values() if isinstance(p, str)]
    return {name: reasons[0]} if reasons else parts


@lru_cache(maxsize=16)
def _frames(name: str, states: int, steps: int, plates: tuple[Plate, ...]) -> Frames:
    return Frames(plates, (), tuple((Variable(f"{name}[{t}]", states, plates),) for t in range(steps + 1)))
