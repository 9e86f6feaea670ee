"""The order in which variables and plates are eliminated: structure only, no numbers.

Tensor variable elimination (Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs"):
work from the innermost plates outwards; sum out the variables that live exactly there, cheapest table
first; then take the product over the plates that the surviving factors no longer need.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from pyro_em.errors import ModelError
from pyro_em.graph.factor import Dim, FactorGraph, Plate, Variable

__all__ = ["MAX_TABLE", "Plan", "PlateProduct", "SumOut", "Terminal", "plan_for"]

MAX_TABLE = 2**28  # elements; 2 GiB in float64


@dataclass(frozen=True)
class SumOut:
    """Multiply the tables in slots ``inputs`` over ``dims`` and sum out the last of them."""

    inputs: tuple[int, ...]
    dims: tuple[Dim, ...]

    @property
    def variable(self) -> Variable:
        """The variable that is summed out."""
        last = self.dims[-1]
        assert isinstance(last, Variable)
        return last


@dataclass(frozen=True)
class PlateProduct:
    """Multiply the table in slot ``input`` over the axes of ``plates``."""

    input: int
    plates: tuple[Plate, ...]


@dataclass(frozen=True)
class Terminal:
    """A table that has no variable left; its sum times ``scale`` is a term of the log evidence."""

    input: int
    plates: tuple[Plate, ...]
    scale: float


@dataclass(frozen=True)
class Plan:
    """Steps in order; each appends one slot to the tables given. ``slots`` holds the dims of every slot."""

    steps: tuple[SumOut | PlateProduct, ...]
    terminals: tuple[Terminal, ...]
    slots: tuple[tuple[Dim, ...], ...]


@dataclass(frozen=True)
class Scope:
    """What planning needs to know of a factor."""

    name: str
    plates: tuple[Plate, ...]
    variables: tuple[Variable, ...]
    scale: float


def plan_for(graph: FactorGraph) -> Plan:
    """The plan for a graph; graphs of the same structure share one.

    Raises:
        ModelError: variables of crossed plates meet in one factor, sites that share a latent differ in scale, or a
            table would not fit in memory.
    """
    return _plan(tuple(Scope(f.name, f.plates, f.scope, f.scale) for f in graph.factors))


@lru_cache(maxsize=64)
def _plan(scopes: tuple[Scope, ...]) -> Plan:
    builder = _Builder(scopes)
    while builder.live:
        builder.eliminate_leaf(max((s.plates for s in builder.live.values()), key=len))
    return Plan(tuple(builder.steps), tuple(builder.terminals), tuple(s.plates + s.variables for s in builder.slots))


class _Builder:
    """Symbolic elimination: the scopes of live slots, and the steps recorded so far."""

    def __init__(self, scopes: Iterable[Scope]) -> None:
        self.slots = list(scopes)
        self.live = dict(enumerate(self.slots))
        self.steps: list[SumOut | PlateProduct] = []
        self.terminals: list[Terminal] = []

    def eliminate_leaf(self, plates: tuple[Plate, ...]) -> None:
        """Remove every variable and every factor that lives in exactly these plates."""
        leaf = frozenset(plates)
        members = {i: s for i, s in self.live.items() if frozenset(s.plates) == leaf}
        local = {v for s in members.values() for v in s.variables if frozenset(v.plates) == leaf}
        self._sum_out(local, members, plates)
        for i, scope in members.items():
            self._close(i, scope, leaf)

    def _sum_out(self, local: set[Variable], members: dict[int, Scope], plates: tuple[Plate, ...]) -> None:
        touching: dict[Variable, set[int]] = {v: set() for v in sorted(local, key=lambda v: v.name)}
        for i, scope in members.items():
            for v in scope.variables:
                if v in touching:
                    touching[v].add(i)
        queue = [(_cost(v, touching[v], members), v.name, v) for v in touching]
        heapq.heapify(queue)
        while touching:
            cost, _, v = heapq.heappop(queue)
            if v not in touching or cost != _cost(v, touching[v], members):
                continue  # an entry from before a neighbour was eliminated
            inputs = tuple(sorted(touching.pop(v)))
            result = self._merge(v, inputs, members, plates)
            for u in result.variables:
                if u in touching:
                    touching[u].difference_update(inputs)
                    touching[u].add(len(self.slots) - 1)
                    heapq.heappush(queue, (_cost(u, touching[u], members), u.name, u))

    def _merge(
        self, v: Variable, inputs: tuple[int, ...], members: dict[int, Scope], plates: tuple[Plate, ...]
    ) -> Scope:
        scopes = [members.pop(i) for i in inputs]
        for i in inputs:
            del self.live[i]
        rest = tuple(sorted({u for s in scopes for u in s.variables} - {v}, key=lambda u: u.name))
        dims: tuple[Dim, ...] = (*plates, *rest, v)
        _check_scales(v, scopes)
        _check_size(v, dims)
        self.steps.append(SumOut(inputs, dims))
        result = Scope(_join(s.name for s in scopes), plates, rest, scopes[0].scale)
        members[self._push(result)] = result
        return result

    def _push(self, scope: Scope) -> int:
        self.slots.append(scope)
        self.live[len(self.slots) - 1] = scope
        return len(self.slots) - 1

    def _close(self, i: int, scope: Scope, leaf: frozenset[Plate]) -> None:
        del self.live[i]
        if not scope.variables:
            self.terminals.append(Terminal(i, scope.plates, scope.scale))
            return
        needed = frozenset(p for v in scope.variables for p in v.plates)
        if needed >= leaf:
            raise ModelError(_crossed(scope))
        self.steps.append(PlateProduct(i, tuple(p for p in scope.plates if p not in needed)))
        self._push(Scope(scope.name, tuple(p for p in scope.plates if p in needed), scope.variables, scope.scale))


def _cost(v: Variable, inputs: set[int], members: dict[int, Scope]) -> int:
    return prod(u.size for u in {u for i in inputs for u in members[i].variables} | {v})


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted({part for name in names for part in name.split(", ")})[:6])


def _check_scales(v: Variable, scopes: list[Scope]) -> None:
    if len({s.scale for s in scopes}) > 1:
        scales = ", ".join(f"{s.name}: {s.scale:g}" for s in scopes)
        raise ModelError(
            f"Sites that share the latent {v.name!r} must have one common scale; got {scales}. Put the whole model "
            f"under one poutine.scale; if a plate is subsampled, the latent {v.name!r} must lie inside that plate."
        )


def _check_size(v: Variable, dims: tuple[Dim, ...]) -> None:
    size = prod(d.size for d in dims)
    if size > MAX_TABLE:
        names = ", ".join(f"{d.name} ({d.size})" for d in dims)
        raise ModelError(
            f"Summing out {v.name!r} exactly needs one table over {names}: {size:.3g} entries, more than the limit of "
            f"{MAX_TABLE:.3g}. Use strategy=SVI(guide) with a guide for some of these latents, or fewer states."
        )


def _crossed(scope: Scope) -> str:
    where = "; ".join(f"{v.name!r} in plates {[p.name for p in v.plates]}" for v in scope.variables)
    return (
        f"Latents of crossed plates meet in site(s) {scope.name}: {where}. Exact summation over crossed plates takes "
        "exponential time. Nest the plates, make one of the latents a parameter, or use strategy=SVI(guide)."
    )
