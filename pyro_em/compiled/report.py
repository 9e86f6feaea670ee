"""What was found out about each parameter, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pyro_em.compiled.plan import Plan
from pyro_em.compiled.regression import Regressions
from pyro_em.compiled.solve import go_together, is_closed
from pyro_em.probing import Affine, Coordinates, Opaque, Probed, ProbedSite, Route, SiteParts
from pyro_em.strategy import EXPLAINED

__all__ = ["Row", "report", "traced_report"]

Row = dict[str, str]
LISTED = 3


def report(plan: Plan) -> list[Row]:
    """One row for each parameter and argument that it reaches; sites that are alike share a row."""
    owners = _owners(plan)
    rows: dict[tuple[str, ...], list[str]] = {}
    for site in plan.probed.sites.values():
        for name, argument, family, verdict, link in _routes(site, plan.probed.coordinates):
            owner, reason = owners[name]
            rows.setdefault((name, argument, family, verdict, link, owner, reason), []).extend(
                site.members if len(site.members) > 1 else [site.name]
            )
    reached = {key[0] for key in rows}
    for name in plan.probed.coordinates.shapes:
        if name not in reached:
            owner, reason = owners[name]
            rows[name, "", "", "opaque", "", owner, reason] = [""]
    order = {name: i for i, name in enumerate(plan.probed.found.sites)}
    return [_row(key, sorted(sites, key=lambda n: order.get(n, -1))) for key, sites in sorted(rows.items())]


def traced_report(names: Iterable[str], fixed: Iterable[str], reason: str) -> list[Row]:
    """One row for each parameter of a model that is traced throughout."""
    held = set(fixed)
    return [
        _row((name, "", "", "opaque", "", "fixed" if name in held else "gradient", reason), [""])
        for name in sorted(names)
    ]


def _row(key: tuple[str, ...], sites: list[str]) -> Row:
    name, argument, family, verdict, link, owner, reason = key
    many = f"{sites[0]} ... {sites[-1]} ({len(sites)} sites)"
    where = ", ".join(sites) if len(sites) <= LISTED else many
    return dict(zip(EXPLAINED, (name, where, argument, family, verdict, link, owner, reason), strict=True))


def _routes(site: ProbedSite, coordinates: Coordinates) -> list[tuple[str, str, str, str, str]]:
    """(parameter, argument, family, verdict, link) of one site."""
    if not isinstance(site.parts, SiteParts):
        argument = "log_factor" if site.parts.startswith("pyro.factor") else ""
        return [(name, argument, "", "opaque", "") for name in site.params]
    family, found = type(site.parts.family).__name__, []
    for argument, route in site.routes.items():
        link = "" if isinstance(route, Opaque) or route.link == "identity" else route.link
        found += [(name, argument, family, route.verdict, link) for name in _params(route, coordinates)]
    return found


def _params(route: Route, coordinates: Coordinates) -> list[str]:
    if isinstance(route, Opaque):
        return list(route.params)
    used = route.columns if isinstance(route, Affine) else route.index[route.index >= 0]
    names = list(coordinates.shapes)
    return [names[i] for i in coordinates.owner()[used].unique().tolist()]


def _owners(plan: Plan) -> Mapping[str, tuple[str, str]]:
    """By parameter: its owner, and why, where that needs a reason."""
    found: dict[str, tuple[str, str]] = {}
    for block in plan.ownership.blocks:
        book = plan.model.books[block.book]
        mates = [b for b in plan.ownership.blocks if b.book == block.book]
        owner = "newton" if go_together(book, mates) or not is_closed(book, [block]) else "closed form"
        found.update(dict.fromkeys(block.params, (owner, "")))
    found.update({name: ("statistics", reason) for name, reason in plan.ownership.reasons.items()})
    if plan.regressions is not None:
        found.update(_by_element(plan.regressions, plan.probed))
    found.update({name: ("gradient", reason) for name, reason in plan.gradient.items()})
    found.update(dict.fromkeys(plan.fixed, ("fixed", "")))
    idle = ("fixed", "no gradient of any density reaches it")
    return {name: found.get(name, idle) for name in plan.probed.coordinates.shapes}


def _by_element(regressions: Regressions, probed: Probed) -> dict[str, tuple[str, str]]:
    names, owner = list(probed.coordinates.shapes), probed.coordinates.owner()

    def params(columns: Any) -> list[str]:
        return [names[i] for i in owner[columns].unique().tolist()]

    found: dict[str, tuple[str, str]] = {}
    for name, columns in regressions.affine.items():
        linear = all(
            f.routes[name].link == "identity" and name == "loc"
            for f in regressions.factors
            if name in f.routes and f.routes[name].is_affine
        )
        found.update(dict.fromkeys(params(columns), ("least squares" if linear else "newton", "")))
    for family in regressions.together:
        moved = [*family.affine.values(), *(argument.movable for argument in family.closed)]
        found.update(dict.fromkeys(params(torch.cat(moved)), ("newton", "")))
    for argument in regressions.closed:
        found.update(
            dict.fromkeys(params(argument.movable), ("newton" if argument.takes_newton else "closed form", ""))
        )
    reason = "its role, constraint or prior leaves no closed form beside an affine argument"
    found.update(dict.fromkeys(regressions.numeric, ("statistics", reason)))
    return found
