"""Chains among the factors of a graph: forward-backward over all frames at once in place of step after step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from pyro_em.chains import forward, sample, viterbi
from pyro_em.graph.factor import Factor, FactorGraph, Plate, Variable
from pyro_em.graph.frames import Frames, Seat, find_frames
from pyro_em.graph.possible import refuse_impossible
from pyro_em.graph.wiring import Place, Wired, Wiring, wire

__all__ = ["Chain", "alike", "components", "split"]

MAX_ENTRIES = 2**27  # of all transitions together: a gigabyte in float64


@dataclass(frozen=True)
class Chain:
    """Some factors of a graph, in the frames of a chain.

    Attributes:
        frames: the chain.
        wiring: how potentials become its tables.
        slots: for each potential, the positions of its factors in the graph, by frame.
        scale: of the whole.
    """

    frames: Frames
    wiring: Wiring
    slots: tuple[tuple[int, ...], ...]
    scale: float

    def log_evidence(self, graph: FactorGraph) -> Tensor:
        """Log-density of each row, over the plates of the chain; differentiable once in the graph's tables."""
        return self.wiring.log_evidence(self._potentials(graph)).reshape([p.size for p in self.frames.plates])

    def tables(self, graph: FactorGraph) -> Wired:
        """Its tables, and the potentials of its hubs."""
        return self.wiring.tables(self._potentials(graph))

    def maximise(self, graph: FactorGraph) -> dict[str, Tensor]:
        """The most probable states, by variable, over its plates."""
        wired = self.tables(graph)
        paths, best = viterbi(wired.tables)
        by_hub = best.reshape(self.frames.num_hubs, -1) + wired.hub
        self._refuse_impossible(by_hub)
        hub = by_hub.argmax(0)
        return {n: s[0] for n, s in self._states(self._chosen(paths[None], hub[None]), hub[None]).items()}

    def sample(self, graph: FactorGraph, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Joint draws by variable, (samples, *plates), and log-probabilities that add up to those of the draws."""
        wired = self.tables(graph)
        filtered = forward(wired.tables)
        by_hub = filtered.log_evidence.reshape(self.frames.num_hubs, -1) + wired.hub
        self._refuse_impossible(by_hub)
        noise = -torch.empty(samples, *by_hub.shape, dtype=torch.float64).exponential_().log()
        hub = (by_hub + noise).argmax(1)
        uniforms = torch.rand(samples, *wired.tables.emission.shape[:2], dtype=torch.float64)
        states = self._states(self._chosen(sample(filtered, uniforms), hub), hub)
        return states, self._log_probs(graph, states, by_hub.logsumexp(0))

    def _refuse_impossible(self, by_hub: Tensor) -> None:
        log_prob = by_hub.amax(0).reshape([p.size for p in self.frames.plates])
        refuse_impossible(self.frames.frames[0][0].name, log_prob, self.frames.plates)

    def _potentials(self, graph: FactorGraph) -> list[Tensor]:
        return [potential([graph.factors[i] for i in slot], self.frames.plates, graph.weights) for slot in self.slots]

    def _chosen(self, paths: Tensor, hub: Tensor) -> Tensor:
        """The paths of the hubs' states: from (n, H * R, T) to (n, R, T)."""
        paths = paths.reshape(len(paths), self.frames.num_hubs, -1, paths.shape[-1])
        return paths.gather(1, hub[:, None, :, None].expand(-1, 1, -1, paths.shape[-1])).squeeze(1)

    def _states(self, paths: Tensor, hub: Tensor) -> dict[str, Tensor]:
        """Joint states of frames (n, R, T) and of hubs (n, R), taken apart into variables."""
        shape = [len(paths), *(p.size for p in self.frames.plates)]
        found = {}
        joint = [(hub, self.frames.hubs), *((paths[..., t], frame) for t, frame in enumerate(self.frames.frames))]
        for state, variables in joint:
            for v in reversed(variables):
                found[v.name] = (state % v.size).reshape(shape)
                state = state // v.size
        return found

    def _log_probs(self, graph: FactorGraph, states: Mapping[str, Tensor], total: Tensor) -> dict[str, Tensor]:
        """Each latent's own log-potentials at its states; the last one's also takes off the log evidence."""
        samples = len(next(iter(states.values())))
        plates = self.frames.plates
        variables = {v.name: v for f in self._factors(graph) for v in f.scope}
        rows = torch.zeros(samples, self.frames.num_rows, dtype=torch.float64) - total
        found = {name: torch.zeros_like(rows) for name in states}
        for factor in self._factors(graph):
            table = potential([factor], plates, graph.weights)[:, 0]
            index = [states[v.name].reshape(samples, -1) for v in factor.scope]
            row = torch.arange(table.shape[0]).expand(self.frames.num_rows)
            value = table[(row, *index)]
            owner = factor.name if factor.name in variables else factor.scope[-1].name
            found[owner] = found[owner] + value
        last = self.frames.frames[-1][-1].name
        found[last] = found[last] + rows
        shape = [samples, *(p.size for p in plates)]
        return {name: value.reshape(shape) for name, value in found.items()}

    def _factors(self, graph: FactorGraph) -> list[Factor]:
        return [graph.factors[i] for slot in self.slots for i in slot]


def alike(graph: FactorGraph, name: str, kind: Callable[[str], object]) -> list[str]:
    """The sites that sit in a chain as this one does, by time; the site itself, where it is in none.

    Args:
        kind: of a site; those of another kind are not alike. Several of one kind in a frame part ways by their order.
    """
    for chain in split(graph)[0]:
        members = [graph.factors[i] for i in sorted(i for slot in chain.slots for i in slot)]
        if name not in {f.name for f in members}:
            continue
        seats = {f.name: chain.frames.seat(f.scope) for f in members if kind(f.name) == kind(name)}
        frames: dict[int, list[str]] = {}
        for n, seat in seats.items():
            if seat.axes == seats[name].axes:
                frames.setdefault(seat.at, []).append(n)
        order = frames[seats[name].at].index(name)
        return [names[order] for _, names in sorted(frames.items()) if len(names) > order]
    return [name]


def split(graph: FactorGraph) -> tuple[tuple[Chain, ...], tuple[int, ...]]:
    """The chains of a graph, and the positions of all other factors."""
    return _split(tuple((f.plates, f.scope, f.scale) for f in graph.factors))


Sized = tuple[tuple[Plate, ...], tuple[Variable, ...], float]


@lru_cache(maxsize=64)
def _split(factors: tuple[Sized, ...]) -> tuple[tuple[Chain, ...], tuple[int, ...]]:
    chains, rest = [], []
    for members in components([scope for _, scope, _ in factors]):
        chain = _chain(members, factors)
        if chain is None:
            rest += members
        else:
            chains.append(chain)
    return tuple(chains), tuple(sorted(rest))


def components(scopes: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Positions of scopes, grouped by the variables (or their names) that connect them."""
    root = list(range(len(scopes)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    first: dict[Hashable, int] = {}
    for i, scope in enumerate(scopes):
        for v in scope:
            one, other = sorted((find(first.setdefault(v, i)), find(i)))
            root[other] = one
    groups: dict[int, list[int]] = {}
    for i in range(len(scopes)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def _chain(members: Sequence[int], factors: Sequence[Sized]) -> Chain | None:
    """The chain that these factors make up, if they do."""
    if len(members) < 2 or len({factors[i][2] for i in members}) > 1:
        return None
    frames = find_frames(tuple(factors[i][1] for i in members))
    if frames is None or any(not set(frames.plates) <= set(factors[i][0]) for i in members):
        return None
    rows = frames.num_hubs * frames.num_rows
    if rows * (len(frames.frames) - 1) * frames.num_states**2 > MAX_ENTRIES:
        return None
    slots = _slots(members, [frames.seat(factors[i][1]) for i in members], frames, factors)
    places = [Place(slot[0][0].axes, torch.tensor([seat.at for seat, _ in slot]), False) for slot in slots]
    return Chain(frames, wire(frames, places), tuple(tuple(i for _, i in s) for s in slots), factors[members[0]][2])


def _slots(
    members: Sequence[int], seats: Sequence[Seat], frames: Frames, factors: Sequence[Sized]
) -> list[list[tuple[Seat, int]]]:
    """Factors that sit alike, at most one in a frame, by frame."""
    slots: dict[object, list[tuple[Seat, int]]] = {}
    met: Counter[object] = Counter()
    for seat, i in zip(seats, members, strict=True):
        shapes = frames.sizes[seat.at], frames.sizes[seat.at - 1] if seat.crosses else ()
        key = seat.axes, shapes, factors[i][0]
        met[key, seat.at] += 1
        slots.setdefault((key, met[key, seat.at]), []).append((seat, i))
    return [sorted(slot, key=lambda pair: pair[0].at) for slot in slots.values()]


def potential(factors: Sequence[Factor], plates: tuple[Plate, ...], weights: Mapping[str, Tensor]) -> Tensor:
    """Tables of factors that sit alike, inner plates multiplied out: shape (R or 1, n, *scope)."""
    dims = factors[0].plates
    tables = [f.table for f in factors]
    over = [i for i, p in enumerate(dims) if p in plates]
    if all(not t.requires_grad and all(t.stride(i) == 0 or t.shape[i] == 1 for i in over) for t in tables):
        tables = [t[tuple(slice(0, 1) if i in over else slice(None) for i in range(t.dim()))] for t in tables]
    table = torch.stack(tables)
    for axis, plate in reversed(list(enumerate(dims))):
        if plate not in plates:
            if plate.name in weights:
                weight = weights[plate.name].to(table.dtype)
                table = table * weight.reshape([-1 if i == axis + 1 else 1 for i in range(table.dim())])
            table = table.sum(axis + 1)
    kept = [p for p in dims if p in plates]
    table = table.permute([*(1 + kept.index(p) for p in plates), 0, *range(1 + len(kept), table.dim())])
    rows = prod(table.shape[: len(plates)])
    return table.reshape(rows, len(factors), *table.shape[1 + len(kept) :])
