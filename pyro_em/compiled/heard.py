"""On which frames of a chain data bear: the others must not count in the M-step.

See :mod:`pyro_em.graph.barren`: beyond its last observation a chain's latents only repeat what the parameters say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_em.compiled.point import AnyFactor
from pyro_em.graph.frames import Frames

__all__ = ["Heard", "hear"]


@dataclass(frozen=True)
class Heard:
    """Where data bear on latents.

    Attributes:
        lengths: how many frames of each row they bear on, shape (R,); ``None`` for all.
        flags: for each factor, whether they bear on the latent that it draws, shape (R, n); ``None`` where the lengths
            say it all.
    """

    lengths: Tensor | None
    flags: tuple[Tensor | None, ...]


def hear(factors: Sequence[AnyFactor], frames: Frames) -> Heard:
    """Sweep from the last frame to the first: a latent is heard of by its data, and through its children."""
    heard = torch.zeros(len(frames.frames), max(map(len, frames.frames)), frames.num_rows, dtype=torch.bool)
    hubs = torch.zeros(frames.num_rows, dtype=torch.bool)
    for f in factors:
        if f.own is not None or f.stack is None:
            continue
        active = torch.ones(len(f.stack.at), frames.num_rows, dtype=torch.bool)
        active = active if f.active is None else f.active.reshape(frames.num_rows, -1).T
        for row, position in f.stack.axes:
            if row > 0:
                heard[f.stack.at - (row - 1), position] |= active
            else:
                hubs |= active.any(0)
    real = torch.arange(heard.shape[1]) < torch.tensor([len(frame) for frame in frames.frames]).unsqueeze(-1)
    if not bool(heard[real].all()):
        _through_children(heard, factors)
    return _summary(heard, hubs | heard.flatten(0, 1).any(0), real, factors)


def _through_children(heard: Tensor, factors: Sequence[AnyFactor]) -> None:
    """Parents hear what their children do, in place; those that have heard all are passed over."""
    deaf = ~heard.all(-1)
    links: dict[int, list[tuple[int, int, int]]] = {}
    for f in reversed(factors):
        if f.own is None or f.stack is None:
            continue
        child = f.stack.axes[f.scope.index(f.own)]
        for row, position in f.stack.axes:
            if row > 0 and child[0] > 0 and (row, position) != child:
                for at in f.stack.at[deaf[f.stack.at - (row - 1), position]].tolist():
                    links.setdefault(at, []).append((row, position, child[1]))
    for at in sorted(links, reverse=True):
        for row, position, child_position in links[at]:
            heard[at - (row - 1), position] |= heard[at, child_position]


def _summary(heard: Tensor, hubs: Tensor, real: Tensor, factors: Sequence[AnyFactor]) -> Heard:
    counted = torch.where(real.unsqueeze(-1), heard, heard[:, :1])
    lengths = counted[:, 0].sum(0)
    prefix = torch.arange(len(heard)).unsqueeze(-1) < lengths
    hub = None if bool(hubs.all()) else hubs.unsqueeze(-1)
    uniform = bool((counted == prefix.unsqueeze(1)).all())
    flags: list[Tensor | None] = []
    for f in factors:
        if f.own is None or f.stack is None:
            flags.append(None)
            continue
        row, position = f.stack.axes[f.scope.index(f.own)]
        if row == 0:
            flags.append(hub)
        else:
            flags.append(None if uniform else heard[f.stack.at, position].T)
    whole = bool((lengths == len(heard)).all())
    return Heard(None if whole or not uniform else lengths, tuple(flags))
