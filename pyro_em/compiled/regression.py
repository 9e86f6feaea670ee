"""The M-step of sites whose arguments are affine in the parameters: least squares, and Newton's method (IRLS).

In turn: the coefficients behind each affine argument, by Newton's method on their predictors, which for the mean of a
Normal is weighted least squares and done in one step (Nelder & Wedderburn 1972); then every other argument by its
family's own solution, the elements as cells. None of these lowers Q.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyro_em.compiled.collapse import collapsed, held, is_low, is_narrow
from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.numeric import climb
from pyro_em.compiled.priors import Prior, log_prior
from pyro_em.compiled.solve import Guard
from pyro_em.families import Cells
from pyro_em.families.newton import newton
from pyro_em.probing import LINKS, Coordinates
from pyro_em.probing.affine import PREDICTORS

__all__ = ["Key", "Regressions"]

SWEEPS = 200
ITERATIONS = 100
STILL = 1e-12

Key = tuple[Any, str, str]  # family, argument, link


@dataclass(frozen=True)
class Regressions:
    """Raises Q over the parameters of element factors.

    Attributes:
        factors: connected with an affine argument, directly or through shared parameters.
        coordinates: of the parameters.
        priors: those that count.
        affine: for each argument name, the columns of theta that Newton's method moves.
        closed: what families solve for: family, argument and link, with the positions in theta that may move.
        numeric: parameters maximised numerically.
    """

    factors: tuple[ElementFactor, ...]
    coordinates: Coordinates
    priors: Mapping[str, Prior]
    affine: dict[str, Tensor]
    closed: dict[Key, Tensor]
    numeric: tuple[str, ...]

    def maximise(self, theta: Tensor, weights: Mapping[str, Tensor], guard: Guard) -> Tensor:
        """theta with these parameters at a maximum of Q over each in turn.

        Args:
            weights: by site, posterior of the states times the datum's weight, shape (n, K).
            guard: what to do about components that collapse.

        Raises:
            DegenerateError: a spread beside an affine argument went to nothing, under a guard that does not floor.
        """
        stats = {f.name: _statistics(f, weights[f.name]) for f in self.factors}
        for _ in range(SWEEPS):
            before = theta
            for name, columns in self.affine.items():
                theta = self._newton(name, columns, theta, stats)
            for key, movable in self.closed.items():
                theta = self._solve(key, movable, theta, stats, guard)
            if self.numeric:
                theta = climb(lambda t: self._q(t, stats), self.coordinates, theta, self.numeric)
            alone = len(self.affine) + len(self.closed) + bool(self.numeric) == 1
            if alone or float((theta - before).abs().max()) <= STILL * (1 + float(before.abs().max())):
                break
        return theta

    def expected(self, theta: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The part of Q that these sites make, in nats, differentiable in theta."""
        stats = {f.name: _statistics(f, weights[f.name]) for f in self.factors}
        return self._sum(theta.new_zeros(()), theta, stats)

    def _q(self, theta: Tensor, stats: Mapping[str, Tensor]) -> Tensor:
        priors = {n: p for n, p in self.priors.items() if n in self.numeric}
        return self._sum(log_prior(priors, self.coordinates, theta), theta, stats)

    def _sum(self, total: Tensor, theta: Tensor, stats: Mapping[str, Tensor]) -> Tensor:
        for f in self.factors:
            total = total + _expected(f, f.args(theta, slice(None)), stats[f.name]).sum()
        return total

    def _newton(self, name: str, columns: Tensor, theta: Tensor, stats: Mapping[str, Tensor]) -> Tensor:
        """Newton's method over the coefficients behind one argument, with steps halved until Q does not fall."""
        for _ in range(ITERATIONS):
            value, slope, curvature = self._derivatives(name, columns, theta, stats)
            step = _solve(curvature, slope)
            promised = float(slope @ step)
            if promised <= 1e-15 * (1 + abs(value)):
                break
            moved = self._halved(name, columns, theta, stats, step, value)
            if moved is None:
                break
            theta = moved
        return theta

    def _halved(
        self, name: str, columns: Tensor, theta: Tensor, stats: Mapping[str, Tensor], step: Tensor, value: float
    ) -> Tensor | None:
        for halving in range(40):
            trial = theta.clone()
            trial[columns] += step * 0.5**halving
            there = self._value(name, trial, stats)
            if there >= value - 1e-14 * abs(value):
                return trial
        return None

    def _behind(self, name: str) -> list[ElementFactor]:
        return [f for f in self.factors if name in f.routes and f.routes[name].is_affine]

    def _value(self, name: str, theta: Tensor, stats: Mapping[str, Tensor]) -> float:
        total = sum(float(_expected(f, f.args(theta, slice(None)), stats[f.name]).sum()) for f in self._behind(name))
        return total if total == total else -torch.inf

    def _derivatives(
        self, name: str, columns: Tensor, theta: Tensor, stats: Mapping[str, Tensor]
    ) -> tuple[float, Tensor, Tensor]:
        """Q, its gradient in theta[columns], and minus its second derivatives."""
        size = len(columns)
        total, slope, curvature = 0.0, theta.new_zeros(size), theta.new_zeros(size, size)
        at = torch.full((len(theta),), -1, dtype=torch.long)
        at[columns] = torch.arange(size)
        for f in self._behind(name):
            route = f.routes[name]
            assert route.design is not None and route.columns is not None
            value, first, second = _in_predictor(f, name, theta, stats[f.name])
            rank = 1 if second.dim() == first.dim() + 1 else 0
            used = at[route.columns]
            design = route.design[..., used >= 0]
            used = used[used >= 0]
            full = design.expand(*first.shape, design.shape[-1])
            total += value
            slope.index_add_(0, used, (full * first.unsqueeze(-1)).flatten(0, -2).sum(0))
            curved = second @ full if rank else second.unsqueeze(-1) * full
            product = full.flatten(0, -2).T @ curved.flatten(0, -2)
            curvature[used.unsqueeze(1), used.unsqueeze(0)] -= product
        return total, slope, curvature

    def is_held(self, theta: Tensor, slack: float) -> bool:
        """Whether a spread beside an affine argument is at most ``slack`` times its floor."""
        pools = [_pooled(self._members(key), key, theta) for key in self.closed if _is_spread(key)]
        return any(is_low(p.present, _variances(p), slack) for p in pools)

    def _members(self, key: Key) -> list[ElementFactor]:
        kind, name, link = key
        members = [f for f in self.factors if type(f.family) is kind and not f.routes[name].is_affine]
        return [f for f in members if f.routes[name].link == link]

    def _solve(self, key: Key, movable: Tensor, theta: Tensor, stats: Mapping[str, Tensor], guard: Guard) -> Tensor:
        """A family's own solution for one argument, pooled over all sites that share it."""
        _, name, link = key
        pool = _pooled(self._members(key), key, theta)
        cells = Cells(
            torch.cat([stats[f.name].flatten(0, -2) for f in pool.members]), pool.args, pool.group, len(pool.values)
        )
        family = pool.members[0].family
        found = family.solve(name, cells)
        if found is None:
            found = newton(family, (name,), cells.stats, pool.args, pool.group, cells.size, {name: pool.present})[name]
        if _is_spread(key):
            found = _guarded(key, pool, found, cells, movable, guard)
        inverse = LINKS[link].inverse(found).reshape(cells.size, -1)
        inside = torch.isin(pool.values, movable) & torch.isfinite(inverse)
        theta = theta.clone()
        theta[pool.values[inside]] = inverse[inside]
        return theta


@dataclass(frozen=True)
class _Pool:
    """The elements of all sites that share an argument.

    Attributes:
        values: positions in theta of each value of the argument, shape (G, block).
        group: which of them each element uses, shape (C,).
        args: all arguments of each element.
        present: each value at theta.
    """

    members: list[ElementFactor]
    values: Tensor
    group: Tensor
    args: dict[str, Tensor]
    present: Tensor


def _pooled(members: list[ElementFactor], key: Key, theta: Tensor) -> _Pool:
    _, name, _ = key
    rows, args = [], []
    for f in members:
        index = f.routes[name].index
        assert index is not None
        shape, block = _shape(f), index.shape[3:]
        rows.append(index.expand(*shape, *block).reshape(-1, *block))
        here = f.args(theta, slice(None))
        args.append({n: a.expand(*shape, *a.shape[3:]).reshape(-1, *a.shape[3:]) for n, a in here.items()})
    flat = torch.cat([r.flatten(1) if r.dim() > 1 else r.unsqueeze(1) for r in rows])
    values, group = flat.unique(dim=0, return_inverse=True)
    together = {n: torch.cat([a[n] for a in args]) for n in args[0]}
    present = together[name].new_zeros(len(values), *together[name].shape[1:])
    present[group] = together[name]
    return _Pool(members, values, group, together, present)


def _shape(factor: ElementFactor) -> tuple[int, int, int]:
    return factor.num_rows, factor.num_states, factor.x.shape[2]


def _is_spread(key: Key) -> bool:
    kind, name, _ = key
    return any(a.spread for a in kind.args if a.name == name)


def _variances(pool: _Pool) -> Tensor:
    """Of the data behind each value, the largest variance among its sites, shape (G,) or (G, D)."""
    parts, at = [], 0
    for f in pool.members:
        count = prod(_shape(f))
        x = f.data(slice(None))
        own = x.flatten(0, 2).var(0, correction=0)
        used = torch.bincount(pool.group[at : at + count], minlength=len(pool.values)) > 0
        parts.append(torch.where(used.reshape(-1, *[1] * own.dim()), own, 0.0))
        at += count
    return torch.stack(parts).amax(0)


def _guarded(key: Key, pool: _Pool, found: Tensor, cells: Cells, movable: Tensor, guard: Guard) -> Tensor:
    """The values, none of them collapsed."""
    kind, name, _ = key
    counts, data = cells.pool(cells.stats[:, -1]), _variances(pool)
    spoken_of = (counts > 0) & torch.isin(pool.values, movable).any(1)
    if guard.floor:
        lifted = held(found, data, lambda: found.nan_to_num(0.0) @ found.nan_to_num(0.0).mT)
        return torch.where(spoken_of.reshape(-1, *[1] * (found.dim() - 1)), lifted, found)
    narrow = is_narrow(found, data, guard.dtype) & spoken_of
    if bool(narrow.any()):
        g = int(narrow.nonzero()[0, 0])
        value = found[g] if found.dim() == 1 else found[g].diagonal().abs().amin()
        element = int(pool.values[g, 0])
        raise collapsed(kind.__name__, name, element, float(value), float(counts[g]), guard.coordinates)
    return found


def _statistics(factor: ElementFactor, weights: Tensor) -> Tensor:
    """Expected features and counts of every element, shape (n, K, E, S + 1)."""
    t = factor.features(slice(None))
    t = t.expand(factor.num_rows, factor.num_states, -1, -1)
    weights = weights[:, :, None].expand(-1, -1, t.shape[2])
    return t * factor.masked(weights, slice(None)).unsqueeze(-1)


def _expected(factor: ElementFactor, args: dict[str, Tensor], stats: Tensor) -> Tensor:
    coefficients = factor.family.coefficients(**args)
    return torch.where(stats == 0, 0.0, coefficients * stats)


def _in_predictor(factor: ElementFactor, name: str, theta: Tensor, stats: Tensor) -> tuple[float, Tensor, Tensor]:
    """Q of one site, with first and second derivatives in the predictor of each element."""
    route, every = factor.routes[name], slice(None)
    block = route.predictor(theta, every).shape[3:]
    eta = route.predictor(theta, every).expand(*stats.shape[:3], *block).clone().requires_grad_(True)
    args = {n: r.value(factor.coordinates, theta, every) for n, r in factor.routes.items() if n != name}
    with torch.enable_grad():
        value = _expected(factor, {**args, name: PREDICTORS[route.link][1](eta)}, stats).sum()
        (first,) = torch.autograd.grad(value, eta, create_graph=True)
        if not block:
            (second,) = torch.autograd.grad(first.sum(), eta)
        else:
            rows = [torch.autograd.grad(first[..., v].sum(), eta, retain_graph=True)[0] for v in range(block[0])]
            second = torch.stack(rows, -2)
    return float(value.detach()), first.detach(), second


def _solve(curvature: Tensor, slope: Tensor) -> Tensor:
    """A direction of ascent: Newton's where Q is concave, none where it is flat or overflows."""
    if not bool(torch.isfinite(curvature).all()):
        return torch.zeros_like(slope)
    levels, axes = torch.linalg.eigh(curvature)
    size = levels.abs()
    usable = size > 1e-11 * size.max()
    return axes @ torch.where(usable, (axes.T @ slope) / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
