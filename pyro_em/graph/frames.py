"""Chains in a factor graph: latents in a row of frames, each frame tied to its neighbours only.

Layers of a breadth-first search are such a row: an edge joins latents of one layer or of neighbouring ones. So one
search finds hidden Markov models, coupled chains (a frame is one latent of each), chains of higher order (a frame is
several steps) and latents shared by a whole chain (hubs, which are left out of the search).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import prod

from pyro_em.graph.factor import Plate, Variable

__all__ = ["Axes", "Frames", "Seat", "find_frames"]

MIN_FRAMES = 3  # of fewer, elimination step by step is as fast
MAX_STATES = 1024  # of a frame: beyond, elimination one latent at a time is cheaper
STARTS = 6  # how many of the model's first latents may make up the first frame


@dataclass(frozen=True)
class Axes:
    """What the axes of a factor's table are.

    Attributes:
        axes: for each variable of its scope, in order: (0, position) among the hubs, (1, position) in its frame, or
            (2, position) in the frame before.
    """

    axes: tuple[tuple[int, int], ...]

    @property
    def crosses(self) -> bool:
        """Whether it joins two frames."""
        return any(row == 2 for row, _ in self.axes)

    @property
    def is_hub(self) -> bool:
        """Whether it touches no frame."""
        return all(row == 0 for row, _ in self.axes)


@dataclass(frozen=True)
class Seat(Axes):
    """Where a factor sits: ``at`` is the later of its frames."""

    at: int


@dataclass(frozen=True)
class Frames:
    """A chain.

    Attributes:
        plates: of all its variables, outermost first: one chain for every joint element.
        hubs: variables that all frames may depend on.
        frames: the other variables, in their order along the chain.
    """

    plates: tuple[Plate, ...]
    hubs: tuple[Variable, ...]
    frames: tuple[tuple[Variable, ...], ...]

    @property
    def num_rows(self) -> int:
        """Number of chains R."""
        return prod(p.size for p in self.plates)

    @property
    def num_hubs(self) -> int:
        """Number of joint states of the hubs H."""
        return prod(v.size for v in self.hubs)

    @cached_property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of states of each frame's variables."""
        return tuple(tuple(v.size for v in frame) for frame in self.frames)

    @cached_property
    def tracks(self) -> tuple[str, ...]:
        """For each position in a frame, the name of its first variable."""
        first: dict[int, str] = {}
        for frame in self.frames:
            for i, v in enumerate(frame):
                first.setdefault(i, v.name)
        return tuple(first[i] for i in range(len(first)))

    @cached_property
    def num_states(self) -> int:
        """Number of joint states of the largest frame S."""
        return max(prod(sizes) for sizes in self.sizes)

    @cached_property
    def _places(self) -> dict[Variable, tuple[int, int]]:
        return {v: (t, i) for t, frame in enumerate(self.frames) for i, v in enumerate(frame)}

    def seat(self, scope: Sequence[Variable]) -> Seat:
        """Where a factor over these variables sits."""
        places = self._places
        at = max((places[v][0] for v in scope if v in places), default=0)
        axes = [(1 + at - places[v][0], places[v][1]) if v in places else (0, self.hubs.index(v)) for v in scope]
        return Seat(tuple(axes), at)


@lru_cache(maxsize=64)
def find_frames(scopes: tuple[tuple[Variable, ...], ...]) -> Frames | None:
    """The cheapest row of frames for connected scopes, or ``None`` where elimination of another kind is better.

    Args:
        scopes: of factors that are connected through their variables, in the model's order.
    """
    order = list(dict.fromkeys(v for scope in scopes for v in scope))
    if len(order) < MIN_FRAMES or any(v.plates != order[0].plates for v in order):
        return None
    number = {v: i for i, v in enumerate(order)}
    neighbours: list[set[int]] = [set() for _ in order]
    for scope in scopes:
        numbers = [number[v] for v in scope]
        for i in numbers:
            neighbours[i].update(numbers)
    hubs = {i for i, near in enumerate(neighbours) if len(near) > max(MIN_FRAMES, len(order) // 2)}
    sizes, members = [v.size for v in order], [[number[v] for v in scope] for scope in scopes]
    rows = [(h, layers) for h in ([set(), hubs] if hubs else [hubs]) for layers in _rows(len(order), h, neighbours)]
    rows = [(h, layers) for h, layers in rows if max(prod(sizes[i] for i in x) for x in layers) <= MAX_STATES]
    if not rows:
        return None
    chosen, layers = min(rows, key=lambda row: _cost(row[0], row[1], sizes, members))
    return Frames(
        order[0].plates, tuple(order[i] for i in sorted(chosen)), tuple(tuple(order[i] for i in x) for x in layers)
    )


def _cost(hubs: set[int], layers: list[list[int]], sizes: list[int], members: list[list[int]]) -> tuple[int, int, int]:
    """Multiplications of the largest step, number of factors that join two frames, multiplications of all steps."""
    states = [prod(sizes[i] for i in layer) for layer in layers]
    steps = [prod(sizes[i] for i in hubs) * a * b for a, b in pairwise(states)]
    at = {i: t for t, layer in enumerate(layers) for i in layer}
    crossing = sum(len({at[i] for i in scope if i in at}) > 1 for scope in members)
    return max(steps), crossing, sum(steps)


def _rows(count: int, hubs: set[int], neighbours: list[set[int]]) -> Iterable[list[list[int]]]:
    """Layers from every possible first one."""
    rest = [i for i in range(count) if i not in hubs]
    for most in range(1, min(STARTS, len(rest)) + 1):
        layers = _layers(rest[:most], hubs, neighbours)
        if sum(map(len, layers)) == len(rest) and len(layers) >= MIN_FRAMES:
            yield layers


def _layers(first: list[int], hubs: set[int], neighbours: list[set[int]]) -> list[list[int]]:
    """Breadth-first layers, each in the model's order."""
    seen, layers = hubs.union(first), [first]
    while True:
        reached = set().union(*(neighbours[i] for i in layers[-1])) - seen
        if not reached:
            return layers
        seen |= reached
        layers.append(sorted(reached))
