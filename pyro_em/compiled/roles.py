"""Which solution moves each parameter of sites by element, from the roles that it plays in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_em.compiled.elements import ElementFactor
from pyro_em.compiled.model import TensorModel
from pyro_em.compiled.ownership import implied, takes_newton
from pyro_em.compiled.pooled import Key, Pooled
from pyro_em.compiled.priors import Prior
from pyro_em.compiled.regression import Regressions
from pyro_em.compiled.together import Together, elementwise
from pyro_em.families.coupled import can_go_together
from pyro_em.probing import Affine, Coordinates, ProbedSite, Selected, SiteParts

__all__ = ["regressions_of"]


@dataclass(frozen=True)
class _Role:
    """One way in which a parameter reaches sites.

    Attributes:
        argument: which it reaches.
        key: of a selection, the family, argument and link; ``None`` for an affine argument.
    """

    argument: str
    key: Key | None


def regressions_of(
    sites: list[ProbedSite],
    model: TensorModel,
    coordinates: Coordinates,
    priors: Mapping[str, Prior],
    frozen: Collection[str],
) -> Regressions | None:
    """Who moves what; ``None`` without such sites.

    A parameter of one role has a solution: coefficients have Newton's method, with smooth priors; an argument has its
    family's, where it has no prior. In a family whose arguments are numbers with bounds, all of them move together
    where they are coupled, or a coefficient has bounds of its own. The rest is numeric.
    """
    if not sites:
        return None
    names = {s.name for s in sites}
    factors = tuple(f for f in model.factors if isinstance(f, ElementFactor) and f.name in names)
    roles = {p: found for p, found in _roles(sites, coordinates).items() if p not in frozen}
    single = {p: next(iter(found)) for p, found in roles.items() if len(found) == 1 and _has_newton(p, found, priors)}
    free = {p for p, role in single.items() if _is_free(role, coordinates.constraints[p])}
    bounded = {p for p in single.keys() - free if _is_bounded(single[p], coordinates.constraints[p])}
    may = {p: role for p, role in single.items() if p in free | bounded}
    together = _together(factors, may, coordinates, priors, bounded)
    taken = {p for family in together for p in family.params}
    apart = {p: may[p] for p in may if p in free - taken and (may[p].key is None or p not in priors)}
    return Regressions(
        factors=factors,
        coordinates=coordinates,
        priors=priors,
        affine=_affine(apart, coordinates),
        closed=_closed(apart, coordinates),
        together=together,
        numeric=tuple(sorted(roles.keys() - taken - apart.keys())),
    )


def _roles(sites: list[ProbedSite], coordinates: Coordinates) -> dict[str, set[_Role]]:
    """The roles that each parameter plays."""
    names, owner = list(coordinates.shapes), coordinates.owner()
    found: dict[str, set[_Role]] = {}
    for site in sites:
        assert isinstance(site.parts, SiteParts)
        for argument, route in site.routes.items():
            if isinstance(route, Affine):
                role, used = _Role(argument, None), route.columns
            else:
                assert isinstance(route, Selected)
                role = _Role(argument, (type(site.parts.family), argument, route.link))
                used = route.index[route.index >= 0]
            for i in owner[used].unique().tolist():
                found.setdefault(names[i], set()).add(role)
    return found


def _has_newton(name: str, roles: Iterable[_Role], priors: Mapping[str, Prior]) -> bool:
    """Whether a prior leaves it to Newton's method: it has curvature, and the way back to its parameter one branch."""
    own = {name: priors[name]} if name in priors else {}
    return all(takes_newton("" if r.key is None else r.key[2], own) for r in roles)


def _is_free(role: _Role, constraint: Any) -> bool:
    """Whether the parameter may go wherever its role would take it."""
    if role.key is None:
        return implied("identity", constraints.real, constraint)
    kind, argument, link = role.key
    form = next(a for a in kind.args if a.name == argument)
    return form.rank != 1 and implied(link, form.domain, constraint)


def _is_bounded(role: _Role, constraint: Any) -> bool:
    """Whether it is a coefficient each element of which has bounds of its own."""
    return role.key is None and elementwise(constraint) is not None


def _together(
    factors: Iterable[ElementFactor],
    roles: Mapping[str, _Role],
    coordinates: Coordinates,
    priors: Mapping[str, Prior],
    bounded: Collection[str],
) -> tuple[Together, ...]:
    """What must move together: all arguments of a family, or those behind one argument where a coefficient has bounds.

    Not where they move another family, too.
    """
    users = _users(factors, roles, coordinates)

    def of(kind: Any, params: Collection[str]) -> Together:
        own = {p: roles[p] for p in params}
        known = {p: prior for p, prior in priors.items() if p in own}
        return Together(kind, frozenset(own), _affine(own, coordinates), _closed(own, coordinates), coordinates, known)

    found = []
    for kind in dict.fromkeys(type(f.family) for f in factors):
        own = [p for p in roles if kind in users[p]]
        is_alone, arguments = all(users[p] == {kind} for p in own), {roles[p].argument for p in own}
        edges = {roles[p].argument for p in own if p in bounded}
        if is_alone and (len(arguments) > 1 or edges) and can_go_together(kind, of(kind, own).size):
            found.append(of(kind, own))
            continue
        for argument in sorted(edges):
            behind = [p for p in own if roles[p].key is None and roles[p].argument == argument]
            if all(users[p] == {kind} for p in behind) and all(a.rank == 0 for a in kind.args):
                found.append(of(kind, behind))
    return tuple(found)


def _users(
    factors: Iterable[ElementFactor], roles: Mapping[str, _Role], coordinates: Coordinates
) -> dict[str, set[type]]:
    """By parameter, the families that it reaches."""
    names, owner = list(coordinates.shapes), coordinates.owner()
    users: dict[str, set[type]] = {p: set() for p in roles}
    for f in factors:
        for route in f.routes.values():
            used = route.columns if route.is_affine else route.index
            assert used is not None
            for i in owner[used[(used >= 0) & (used < len(owner))]].unique().tolist():
                users.get(names[i], set()).add(type(f.family))
    return users


def _positions(name: str, coordinates: Coordinates) -> Tensor:
    return coordinates.starts()[name] + torch.arange(torch.Size(coordinates.shapes[name]).numel())


def _affine(roles: Mapping[str, _Role], coordinates: Coordinates) -> dict[str, Tensor]:
    """By argument, the columns of theta behind it."""
    found: dict[str, list[Tensor]] = {}
    for name, role in roles.items():
        if role.key is None:
            found.setdefault(role.argument, []).append(_positions(name, coordinates))
    return {argument: torch.cat(parts) for argument, parts in found.items()}


def _closed(roles: Mapping[str, _Role], coordinates: Coordinates) -> tuple[Pooled, ...]:
    """Arguments that are selections."""
    found: dict[Key, list[Tensor]] = {}
    for name, role in roles.items():
        if role.key is not None:
            found.setdefault(role.key, []).append(_positions(name, coordinates))
    return tuple(Pooled(key, torch.cat(parts)) for key, parts in found.items())
