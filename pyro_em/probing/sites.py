"""A sample site taken apart: its family, and its arguments and data over named axes instead of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_em.errors import ModelError
from pyro_em.families import Family, family_of
from pyro_em.families.multivariate_normal import MultivariateNormal
from pyro_em.families.normal import Normal
from pyro_em.graph.build import Structure, active_part, plates_of, unknown_axis, variable_dims
from pyro_em.graph.factor import Dim, Plate, Variable
from pyro_em.graph.trace import Site

__all__ = ["Core", "SiteParts", "aligned", "as_independent", "core_of", "take_apart"]


@dataclass(frozen=True)
class Core:
    """A distribution without its wrappers.

    Attributes:
        fn: the innermost distribution.
        events: how many of its batch dimensions, on the right, the site counts as one event.
        masks: masks met on the way in, each with the number of event dimensions to its right.
    """

    fn: Any
    events: int
    masks: tuple[tuple[Any, int], ...]


def core_of(fn: Any) -> Core:
    """Take off ``Independent``, ``mask`` and ``expand``, in whatever order they were put on."""
    events, masks = 0, []
    while True:
        if isinstance(fn, Independent):
            events += fn.reinterpreted_batch_ndims
        elif isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, events))
        elif not isinstance(fn, ExpandedDistribution):
            return Core(fn, events, tuple(masks))
        fn = fn.base_dist


@dataclass(frozen=True)
class SiteParts:
    """A site over named axes. Tensors have one axis for each of ``dims``, one for each event dimension the family does
    not know of, then the family's own; an axis along which nothing changes has size one.

    Attributes:
        name: the site.
        family: its family.
        plates, scope: as in :class:`~pyro_em.graph.factor.Factor`.
        events: number of event axes.
        arguments: by name, (*dims, *events, *block).
        data: what the family calls x, (*dims, *events, *event).
        mask: where the density counts, (*dims, *events); ``None``, everywhere.
        active: over the plates, where any of it does.
        own: the variable that this site draws; ``None`` for an observation.
        logits: of ``probs``, where the program gave logits.
    """

    name: str
    family: Family
    plates: tuple[Plate, ...]
    scope: tuple[Variable, ...]
    events: int
    arguments: dict[str, Tensor]
    data: Tensor
    mask: Tensor | None
    active: Tensor | None
    own: Variable | None
    logits: Tensor | None = None

    @property
    def dims(self) -> tuple[Dim, ...]:
        """What the leading axes stand for."""
        return self.plates + self.scope


def take_apart(name: str, site: Site, found: Structure) -> SiteParts | str:
    """The parts of a site; or, in a sentence, why there are none.

    Raises:
        ModelError: an axis that is neither a plate nor an enumerated latent.
    """
    core = core_of(site["fn"])
    kind = family_of(core.fn)
    if kind is None:
        name_of = type(core.fn).__name__
        return f"{'pyro.factor' if name_of == 'Unit' else name_of} has no closed-form family"
    if site["args"] or site["kwargs"]:
        return "its density takes extra arguments"
    family = kind.of(core.fn, site["value"])
    own = found.variables.get(name)
    positions = _positions(site, found)
    arguments, data = family.arguments(core.fn), family.data(core.fn, site["value"])
    batches = {n: t for n, t in arguments.items()} | {"value": data}
    ranks = {a.name: a.rank for a in family.args} | {"value": family.rank}
    if "probs" in arguments and "logits" in vars(_table(core.fn)):
        batches["logits"], ranks["logits"] = _table(core.fn).logits, ranks["probs"]
    plates = tuple(d for d in positions.values() if isinstance(d, Plate))
    met = {d for n, t in batches.items() for d in _met(t, ranks[n], core.events, positions)}
    scope = tuple(d for d in positions.values() if isinstance(d, Variable) and (d in met or d == own))
    dims: tuple[Dim, ...] = (*plates, *scope)
    sparse = batches.pop("value") if data.layout is torch.sparse_csr else None
    over = {n: aligned(name, t, ranks[n], core.events, positions, dims) for n, t in batches.items()}
    return SiteParts(
        name=name,
        family=family,
        plates=plates,
        scope=scope,
        events=core.events,
        data=over.pop("value") if sparse is None else sparse,
        logits=over.pop("logits", None),
        arguments=over,
        mask=None if own is not None else _mask(name, site, core, positions, dims),
        active=active_part(site, {d: p for d, p in positions.items() if isinstance(p, Plate)}),
        own=own,
    )


def _table(fn: Any) -> Any:
    """The distribution that keeps the probabilities: that of one draw, for a Multinomial."""
    return getattr(fn, "_categorical", fn)


def _positions(site: Site, found: Structure) -> dict[int, Dim]:
    """Plate or variable of each negative batch dimension; plates first, outermost first."""
    fn, value = site["fn"], site["value"]
    batch = value.shape[: value.dim() - fn.event_dim]
    shape = torch.broadcast_shapes(fn.batch_shape, batch)
    variables = variable_dims(site, found)
    return {**plates_of(site, shape), **{dim: variables[dim] for dim in sorted(variables)}}


def _narrow(tensor: Tensor, batch: int) -> Tensor:
    """Size one along batch dimensions that only repeat (stride 0)."""
    for i in range(batch):
        if tensor.shape[i] > 1 and tensor.stride(i) == 0:
            tensor = tensor.narrow(i, 0, 1)
    return tensor


def _met(tensor: Tensor, rank: int, events: int, positions: Mapping[int, Dim]) -> list[Dim]:
    if tensor.layout is torch.strided:
        tensor = _narrow(tensor, tensor.dim() - rank)
    lead = tensor.shape[: max(tensor.dim() - rank - events, 0)]
    found = [positions.get(i - len(lead)) for i, size in enumerate(lead) if size > 1]
    return [d for d in found if d is not None]


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
    tensor = _narrow(tensor, tensor.dim() - rank)
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


def _mask(name: str, site: Site, core: Core, positions: Mapping[int, Dim], dims: tuple[Dim, ...]) -> Tensor | None:
    """All masks of an observation together; ``None`` where none hides anything."""
    total: Tensor | None = None
    for mask, events in [(site["mask"], 0), *core.masks]:
        if mask is None or mask is True:
            continue
        mask = torch.as_tensor(mask)
        over = aligned(name, mask, 0, events, positions, dims)
        over = over.reshape([*over.shape, *[1] * (core.events - events)])
        total = over if total is None else total & over
    return None if total is None or bool(total.all()) else total


def as_independent(runs: Sequence[SiteParts]) -> list[SiteParts]:
    """A multivariate Normal whose covariance is diagonal in all runs is a row of Normals, whose parameters may be tied
    in any way; other sites as they are.
    """
    if not all(isinstance(p.family, MultivariateNormal) and _is_diagonal(p.arguments["scale_tril"]) for p in runs):
        return list(runs)
    return [
        replace(
            p,
            family=Normal(),
            events=p.events + 1,
            arguments={"loc": p.arguments["loc"], "scale": p.arguments["scale_tril"].diagonal(dim1=-2, dim2=-1)},
            mask=None if p.mask is None else p.mask.unsqueeze(-1),
        )
        for p in runs
    ]


def _is_diagonal(matrix: Tensor) -> bool:
    return not bool((matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))).any())
