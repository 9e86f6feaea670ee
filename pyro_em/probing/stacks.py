"""Sites of a chain that are alike but for their time, taken as one site with an axis of time.

A loop of a thousand steps is a handful of such stacks, whose arguments are matched, evaluated and maximised over as
those of any plate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from pyro_em.graph.chain import components
from pyro_em.graph.factor import Plate, Variable
from pyro_em.graph.frames import Frames, Seat, find_frames
from pyro_em.probing.apart import Raw, take_apart
from pyro_em.probing.sites import SiteParts, Stack

__all__ = ["Pile", "apart", "each", "find_piles", "in_order"]


@dataclass(frozen=True)
class Pile:
    """Sites that make up one stack.

    Attributes:
        pieces: the sites, those whose tensors have the same axes together, each piece by frame.
        seats: of the pieces' sites.
        frames: the chain.
    """

    pieces: tuple[tuple[str, ...], ...]
    seats: tuple[tuple[Seat, ...], ...]
    frames: Frames

    @property
    def members(self) -> list[tuple[int, str]]:
        """Frames and sites, by frame."""
        pairs = zip(self.seats, self.pieces, strict=True)
        return sorted((s.at, n) for seats, names in pairs for s, n in zip(seats, names, strict=True))


def find_piles(raws: Mapping[str, Raw | str]) -> dict[str, Pile | None]:
    """What to take apart together: by the first site of each pile, the pile; ``None`` for sites on their own."""
    known = {n: r for n, r in raws.items() if isinstance(r, Raw)}
    scopes = {n: r.variables for n, r in known.items()}
    names = list(known)
    found: dict[str, Pile | None] = dict.fromkeys(raws)
    for group in components(list(scopes.values())):
        members = [names[i] for i in group]
        frames = find_frames(tuple(scopes[n] for n in members)) if len(members) > 1 else None
        if frames is None:
            continue
        for pile in _piles(members, known, frames):
            for n in (n for piece in pile.pieces for n in piece):
                del found[n]
            found[pile.members[0][1]] = pile
    return {n: found[n] for n in raws if n in found}


def apart(raws: Mapping[str, Raw | str], pile: Pile | None, name: str) -> SiteParts | str:
    """The parts of a site on its own, or of a pile.

    Raises:
        ModelError: an axis that is neither a plate nor an enumerated latent.
    """
    if pile is None:
        raw = raws[name]
        return raw if isinstance(raw, str) else take_apart([raw])
    parts = []
    for names, seats in zip(pile.pieces, pile.seats, strict=True):
        members = [r for n in names if isinstance(r := raws.get(n, ""), Raw)]
        if len(members) < len(names) or len({r.shapes for r in members}) > 1:
            return "its shape depends on parameter values"
        parts.append(in_order(take_apart(members, stacked=True), seats[0]))
    return _joined(parts, pile)


def _piles(members: Sequence[str], raws: Mapping[str, Raw], frames: Frames) -> list[Pile]:
    """Sites that sit alike and have the same kind of arguments; several in one frame part ways by their order."""
    slots: dict[object, dict[object, list[tuple[str, Seat]]]] = {}
    places: dict[object, int] = {}
    met: dict[tuple[int, int], int] = {}
    for name in members:
        raw = raws[name]
        seat = frames.seat(raw.variables)
        sizes = frames.sizes[seat.at], frames.sizes[seat.at - 1] if seat.crosses else ()
        plates = tuple((d, p.size, p if p in frames.plates else "") for d, p in _plates(raw).items())
        own = None if raw.own is None else seat.axes[raw.variables.index(raw.own)]
        place = tuple(sorted(seat.axes)), sizes, plates, own, _kind(raw)
        number = places.setdefault(place, len(places))
        met[number, seat.at] = met.get((number, seat.at), 0) + 1
        slot = slots.setdefault((number, met[number, seat.at], seat.is_hub and name), {})
        slot.setdefault((raw.shapes, seat.axes), []).append((name, seat))
    return [
        Pile(
            tuple(tuple(n for n, _ in piece) for piece in slot.values()),
            tuple(tuple(s for _, s in piece) for piece in slot.values()),
            frames,
        )
        for slot in slots.values()
    ]


def _plates(raw: Raw) -> dict[int, Plate]:
    return {d: p for d, p in raw.positions.items() if isinstance(p, Plate)}


def _kind(raw: Raw) -> object:
    """What members of a pile have in common."""
    family = type(raw.family), getattr(raw.family, "size", None)
    # torch keeps logits with a site whose density was once asked for, and they set no site apart
    given = {n: t for n, t in raw.tensors.items() if n != "logits"}
    blocks = tuple((n, t.shape[t.dim() - raw.ranks[n] :], t.dtype) for n, t in given.items())
    sparse = [n for n, t in raw.tensors.items() if t.layout is not torch.strided]
    return family, raw.events, blocks, len(raw.masks), raw.active is None, raw.scale, raw.name if sparse else ""


def in_order(parts: SiteParts, seat: Seat) -> SiteParts:
    """The parts with the axes of their scope in the order of the seat's rows and positions."""
    order = sorted(range(len(parts.scope)), key=lambda i: seat.axes[i])
    start = len(parts.plates)

    def ordered(t: Tensor) -> Tensor:
        return t.permute([*range(start), *(start + i for i in order), *range(start + len(order), t.dim())])

    return each(replace(parts, scope=tuple(parts.scope[i] for i in order)), ordered)


def each(parts: SiteParts, change: Callable[[Tensor], Tensor]) -> SiteParts:
    """The parts with all that has their axes changed."""
    return replace(
        parts,
        data=change(parts.data),
        arguments={n: change(t) for n, t in parts.arguments.items()},
        mask=None if parts.mask is None else change(parts.mask),
        logits=None if parts.logits is None else change(parts.logits),
    )


def _joined(pieces: Sequence[SiteParts], pile: Pile) -> SiteParts:
    """All pieces as one, by frame, over variables of the chain, which have an axis of time."""
    first, members = pieces[0], pile.members
    axis = len(first.plates) - 1
    counts = [p.plates[-1].size for p in pieces]
    order = torch.tensor([s.at for seats in pile.seats for s in seats]).argsort()

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        sizes = [max(t.shape[i] for t in tensors) for i in range(tensors[0].dim())]
        if sizes[axis] == 1 and len(tensors) == 1:
            return tensors[0]
        full = [t.expand([*sizes[:axis], n, *sizes[axis + 1 :]]) for t, n in zip(tensors, counts, strict=True)]
        return torch.cat(full, axis).index_select(axis, order)

    frames = pile.frames
    if first.scope[0].plates != frames.plates:  # of a batch of another size
        frames = replace(frames, plates=first.scope[0].plates)
    plates = (*first.plates[:-1], Plate(f"time of {pile.frames.tracks[0]}", len(members)))
    axes = tuple(sorted(pile.seats[0][0].axes))
    scope = tuple(_track(v, row, i, pile.frames, plates[-1]) for v, (row, i) in zip(first.scope, axes, strict=True))
    masks, logits = [p.mask for p in pieces if p.mask is not None], [p.logits for p in pieces if p.logits is not None]
    mask = joined(masks) if masks else None
    return replace(
        first,
        name=members[0][1],
        family=reduce(lambda one, other: one.join(other), (p.family for p in pieces)),
        plates=plates,
        scope=scope,
        data=_alike(joined([p.data for p in pieces]), axis),
        arguments={n: joined([p.arguments[n] for p in pieces]) for n in first.arguments},
        logits=joined(logits) if len(logits) == len(pieces) else None,
        mask=None if mask is None or bool(mask.all()) else _alike(mask, axis),
        active=None if first.active is None else joined([p.active for p in pieces if p.active is not None]),
        own=None if first.own is None else scope[first.scope.index(first.own)],
        stack=Stack(
            frames=frames,
            time=plates[-1],
            members=tuple(n for _, n in members),
            at=torch.tensor([t for t, _ in members]),
            axes=axes,
        ),
    )


def _alike(tensor: Tensor, axis: int) -> Tensor:
    """Size one along the axis where nothing changes along it."""
    first = tensor.narrow(axis, 0, 1)
    return first if tensor.shape[axis] > 1 and bool((tensor == first).all()) else tensor


def _track(variable: Variable, row: int, position: int, frames: Frames, time: Plate) -> Variable:
    """A variable for all times; that of the frame before has a name of its own."""
    if row == 0:
        return variable
    name = frames.tracks[position]
    return Variable(name if row == 1 else f"{name} before", variable.size, (*variable.plates, time))
