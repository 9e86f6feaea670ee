"""From a traced site to its parts: arguments and data over named axes instead of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.families import Family, family_of
from pyro_em.graph.axes import unknown_axis
from pyro_em.graph.build import Structure, active_part, broadcast, plates_of, site_scale, variable_dims
from pyro_em.graph.core import Core, core_of
from pyro_em.graph.factor import Dim, Plate, Variable
from pyro_em.graph.trace import Site
from pyro_em.probing.sites import SiteParts

__all__ = ["Raw", "read", "take_apart"]


@dataclass(frozen=True)
class Raw:
    """A site's family and tensors as the program gave them.

    Attributes:
        tensors: arguments by name, "value" and, where the program gave them, "logits"; (*batch, *events, *block).
        ranks: number of block dimensions of each.
        masks: those that hide something, each with the number of event dimensions to its right.
        positions: plate or variable of each negative batch dimension; plates first, outermost first.
        scope: the negative dimensions of the variables that its density depends on.
        scale: its scalar ``poutine.scale``.
    """

    name: str
    family: Family
    events: int
    tensors: dict[str, Tensor]
    ranks: dict[str, int]
    masks: tuple[tuple[Tensor, int], ...]
    positions: dict[int, Dim]
    scope: tuple[int, ...]
    active: Tensor | None
    own: Variable | None
    scale: float

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        """The variables that its density depends on."""
        return tuple(v for d in self.scope if isinstance(v := self.positions[d], Variable))

    @cached_property
    def shapes(self) -> object:
        """What tensors that can be stacked have in common."""
        shapes = tuple((n, t.shape) for n, t in self.tensors.items())
        return shapes, tuple((m.shape, e) for m, e in self.masks), self.scope, tuple(self.positions)


def read(name: str, site: Site, found: Structure) -> Raw | str:
    """What a site holds; or, in a sentence, why it cannot be taken apart."""
    core = core_of(site["fn"])
    kind = family_of(core.fn)
    if kind is None:
        name_of = type(core.fn).__name__
        return f"{'pyro.factor' if name_of == 'Unit' else name_of} has no closed-form family"
    if site["args"] or site["kwargs"]:
        return "its density takes extra arguments"
    family = kind.of(core.fn, _shown(site, core) if hasattr(kind, "holds") else site["value"])
    own = found.variables.get(name)
    positions = _positions(site, found)
    tensors = {**family.arguments(core.fn), "value": family.data(core.fn, site["value"])}
    ranks = {a.name: a.rank for a in family.args} | {"value": family.rank}
    if "probs" in tensors and "logits" in vars(_table(core.fn)):
        tensors["logits"], ranks["logits"] = _table(core.fn).logits, ranks["probs"]
    tensors = {n: t if t.layout is torch.sparse_csr else _narrow(t, t.dim() - ranks[n]) for n, t in tensors.items()}
    met = {d for n, t in tensors.items() for d in _met(t, ranks[n], core.events, positions)}
    scope = tuple(d for d, v in positions.items() if isinstance(v, Variable) and (d in met or v == own))
    plates = {d: p for d, p in positions.items() if isinstance(p, Plate)}
    masks = () if own is not None else _masks(site, core, positions)
    hiding = {positions[d] for mask, events in masks for d in _met(mask, 0, events, positions)}
    if latents := [d.name for d in hiding if isinstance(d, Variable)]:
        return f"its mask depends on the state of {min(latents)!r}"
    active = active_part(site, plates)
    return Raw(name, family, core.events, tensors, ranks, masks, positions, scope, active, own, site_scale(name, site))


def take_apart(raws: Sequence[Raw], stacked: bool = False) -> SiteParts:
    """One site over named axes; or, stacked, several of the same shapes, with an axis for them after the plates.

    Raises:
        ModelError: an axis that is neither a plate nor an enumerated latent.
    """
    raw = raws[0]
    positions = dict(raw.positions)
    plates = tuple(d for d in positions.values() if isinstance(d, Plate))
    if stacked:
        outermost = min([-_depth(raw), *positions]) - 1
        plates = (*plates, Plate("", len(raws)))
        positions[outermost] = plates[-1]
    dims: tuple[Dim, ...] = (*plates, *raw.variables)

    def whole(tensors: Sequence[Tensor], rank: int, events: int) -> Tensor:
        tensor = tensors[0]
        if stacked:
            lead = -outermost - 1 - (tensor.dim() - rank - events)
            tensor = torch.stack(list(tensors))
            tensor = tensor.reshape(tensor.shape[0], *[1] * lead, *tensor.shape[1:])
        return aligned(raw.name, tensor, rank, events, positions, dims)

    names = [n for n, t in raw.tensors.items() if t.layout is torch.strided]
    over = {n: whole([r.tensors[n] for r in raws], raw.ranks[n], raw.events) for n in names}
    mask: Tensor | None = None
    for i, (_, events) in enumerate(raw.masks):
        one = whole([r.masks[i][0] for r in raws], 0, events)
        one = one.reshape([*one.shape, *[1] * (raw.events - events)])
        mask = one if mask is None else mask & one
    data = over.pop("value") if "value" in over else raw.tensors["value"]
    family = reduce(lambda one, other: one.join(other), (r.family for r in raws))
    if hasattr(family, "holds"):  # what masks hide may be anything
        data = torch.where(family.holds(data), data, 0)
    return SiteParts(
        name=raw.name,
        family=family,
        plates=plates,
        scope=raw.variables,
        events=raw.events,
        data=data,
        logits=over.pop("logits", None),
        arguments=over,
        mask=None if mask is None or (not stacked and bool(mask.all())) else mask,
        active=raw.active if not stacked else _together([r.active for r in raws]),
        own=raw.own,
    )


def _depth(raw: Raw) -> int:
    """Number of batch dimensions of its widest tensor."""
    widths = [t.dim() - raw.ranks[n] - raw.events for n, t in raw.tensors.items()]
    return max(widths + [m.dim() - events for m, events in raw.masks])


def _together(active: Sequence[Tensor | None]) -> Tensor | None:
    """Where observations count, with the axis of the sites last."""
    known = [a for a in active if a is not None]
    return None if len(known) < len(active) else torch.stack(known, -1)


def _table(fn: Any) -> Any:
    """The distribution that keeps the probabilities: that of one draw, for a Multinomial."""
    return getattr(fn, "_categorical", fn)


def _positions(site: Site, found: Structure) -> dict[int, Dim]:
    """Plate or variable of each negative batch dimension; plates first, outermost first."""
    fn, value = site["fn"], site["value"]
    batch = value.shape[: value.dim() - fn.event_dim]
    shape = broadcast(fn.batch_shape, batch)
    variables = variable_dims(site, found)
    return {**plates_of(site, shape), **{dim: variables[dim] for dim in sorted(variables)}}


def _narrow(tensor: Tensor, batch: int) -> Tensor:
    """Size one along batch dimensions that only repeat (stride 0)."""
    for i, stride in enumerate(tensor.stride()[:batch] if batch > 0 else ()):
        if stride == 0 and tensor.shape[i] > 1:
            tensor = tensor.narrow(i, 0, 1)
    return tensor


def _met(tensor: Tensor, rank: int, events: int, positions: Mapping[int, Dim]) -> list[int]:
    if tensor.dim() <= rank + events:
        return []
    lead = tensor.shape[: tensor.dim() - rank - events]
    return [i - len(lead) for i, size in enumerate(lead) if size > 1 and i - len(lead) in positions]


def aligned(
    name: str, tensor: Tensor, rank: int, events: int, positions: Mapping[int, Dim], dims: tuple[Dim, ...]
) -> Tensor:
    """From batch positions to named axes: shape (*dims, *events, *block), one where nothing changes.

    Raises:
        ModelError: an axis that is neither a plate nor an enumerated latent.
    """
    missing = rank + events - tensor.dim()
    if missing > 0:
        tensor = tensor.reshape([*[1] * missing, *tensor.shape])
    lead = tensor.shape[: tensor.dim() - rank - events]
    kept = []
    for i, size in enumerate(lead):
        known = positions.get(i - len(lead))
        if size > 1 and (known is None or known.size != size):
            plates = {d: p for d, p in positions.items() if isinstance(p, Plate)}
            raise ModelError(unknown_axis(name, lead, i - len(lead), plates))
        if size > 1:
            assert known is not None
            kept.append(known)
    rest = tensor.shape[len(lead) :]
    tensor = tensor.reshape([*(d.size for d in kept), *rest])
    order = [kept.index(d) for d in dims if d in kept]
    tensor = tensor.permute([*order, *range(len(kept), tensor.dim())])
    return tensor.reshape([*(d.size if d in kept else 1 for d in dims), *rest])


def _masks(site: Site, core: Core, positions: Mapping[int, Dim]) -> tuple[tuple[Tensor, int], ...]:
    """The masks of an observation, over states only where these matter."""
    known = [
        (mask, events) for mask, events in [(site["mask"], 0), *core.masks] if mask is not None and mask is not True
    ]
    return tuple((_over_plates(torch.as_tensor(mask), events, positions), events) for mask, events in known)


def _shown(site: Site, core: Core) -> Tensor:
    """The entries of an observation that are there and that no mask hides, in a row."""
    value: Tensor = site["value"]
    shown = torch.isfinite(value)
    for mask, events in [(site["mask"], 0), *core.masks]:
        if isinstance(mask, Tensor):
            over = mask.reshape([*mask.shape, *[1] * (core.events - events)])
            for axis in range(over.dim() - value.dim()):  # states, on the left
                over = over.any(axis, keepdim=True)
            shown = shown & over.reshape(over.shape[max(over.dim() - value.dim(), 0) :])
    return value.expand(shown.shape)[shown]


def _over_plates(mask: Tensor, events: int, positions: Mapping[int, Dim]) -> Tensor:
    """A mask of size one along the states of latents, where it is the same in all: Pyro expands it to its site."""
    for d in _met(mask, 0, events, positions):
        first = mask.narrow(d - events, 0, 1)
        if isinstance(positions[d], Variable) and bool((mask == first).all()):
            mask = first
    return mask
