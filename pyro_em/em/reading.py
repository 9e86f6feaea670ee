"""Batches read with what was found out on the first, so that each is run a few times a pass and not probed anew.

Designs of regressions are those of the batch itself, read off one run with its gradients. Selections that differ
between data (a label that is observed, the group of a datum) are the batch's own too, matched by value in two runs at
distinct parameters. All other selections are those of the first batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_em.em.shares import Share, Stream, may_be_held
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention
from pyro_em.graph.trace import Site
from pyro_em.params import ParamSpace
from pyro_em.probing import Affine, Coordinates, Probed, ProbedSite, Selected, SiteParts, probe
from pyro_em.probing.condensed import AllBatches, condensed, united
from pyro_em.probing.coordinates import distinct_values
from pyro_em.probing.moments import moments_of
from pyro_em.probing.reread import are_explained, are_of_a_kind, reread
from pyro_em.probing.runs import Run, run
from pyro_em.probing.sites import as_independent
from pyro_em.probing.trim import trimmed
from pyro_em.probing.weight import of_weight

__all__ = ["Reader", "open_reader"]

Parts = dict[str, SiteParts]


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads batches.

    Attributes:
        probed: what was found out on the first batch.
        known: its sites that can be read: those without an argument that is opaque.
        space: the parameters.
        at: their unconstrained values where designs are read: a predictor stays within range there.
        distinct: two sets of constrained values at which selections are told apart.
        varying: sites with selections that differ between data.
        union: what is known of all batches.
    """

    probed: Probed
    known: dict[str, ProbedSite]
    space: ParamSpace
    at: dict[str, Tensor]
    distinct: tuple[dict[str, Tensor], ...]
    varying: frozenset[str] = frozenset()
    union: AllBatches = field(default_factory=lambda: AllBatches({}, {}))

    @property
    def coordinates(self) -> Coordinates:
        """What theta's elements are."""
        return self.probed.coordinates

    def sites(self, share: Share) -> tuple[dict[str, ProbedSite], dict[str, Site]]:
        """The known sites of a batch, trimmed, and the nodes of the run that showed them.

        Raises:
            ModelError: the batch is not what it was in the pass before.
        """
        read = self._read(share)
        parts = self._parts(read, share)
        draws = [self.draw(share, values) for values in self.distinct] if self.varying else []
        if parts is None or any(d is None for _, d in draws):
            raise ModelError("A batch has other sites than it had in the pass before; the data must not change.")
        found = {}
        for name, known in self.known.items():
            seen = [(theta, d[name]) for theta, d in draws if d is not None] if name in self.varying else []
            site = reread(known, parts[name], read, self.coordinates, seen)
            if site is None:
                raise ModelError(f"Site {name!r} of a batch is not what it was in the pass before.")
            found[name] = trimmed(site)
        return found, read.found.sites

    def _read(self, share: Share) -> Run:
        here = self.space.snapshot()
        self.space.restore(self.at)
        try:
            return self._run(share, self.has_designs)
        finally:
            self.space.restore(here)

    def draw(self, share: Share, values: Mapping[str, Tensor]) -> tuple[Tensor, Parts | None]:
        """The parameters, and the known sites of a run at these values; ``None`` where it has others."""
        here = self.space.snapshot()
        try:
            with torch.no_grad():
                self.space.assign(values)
            seen = self._run(share, False)
        finally:
            self.space.restore(here)
        return seen.theta, self._parts(seen, share)

    def _run(self, share: Share, first: bool) -> Run:
        program, data = share.inference.program, (share.args, share.kwargs)
        return run(program, self.space, self.coordinates, data, Intervention(), first, self.probed.piles)

    @property
    def has_designs(self) -> bool:
        """Whether some argument is affine."""
        return any(isinstance(r, Affine) for s in self.known.values() for r in s.routes.values())

    def _parts(self, read: Run, share: Share) -> Parts | None:
        """The known sites of a run taken apart; ``None`` where they are others than the first batch's."""
        found = {}
        for name, known in self.known.items():
            parts = read.parts.get(name, "")
            if not isinstance(parts, SiteParts) or not isinstance(known.parts, SiteParts):
                return None
            if type(parts.family) is not type(known.parts.family):
                (parts,) = as_independent([parts])
            if type(parts.family) is not type(known.parts.family):
                return None
            found[name] = of_weight(parts, share.weights)
        return found


def open_reader(
    probed: Probed, known: Sequence[ProbedSite], by_element: Collection[str], stream: Stream, space: ParamSpace
) -> Reader | None:
    """Go through all batches once, or twice where arguments differ between data; ``None`` where what was found out on
    the first does not explain them.

    Args:
        known: the sites that can be read.
        by_element: those among them that have no statistics.
    """
    distinct = tuple(distinct_values(space.distinct())[:2])
    reader = Reader(probed, {s.name: s for s in known}, space, space.snapshot(), distinct)
    union = AllBatches({s.name: condensed(trimmed(s)) for s in known if s.name not in by_element}, {})
    try:
        varying = _varying(reader, stream, union)
        if varying is None or varying & set(by_element):
            return None
        reader = replace(reader, varying=varying)
        if (varying or reader.has_designs) and not _unite(reader, stream, union):
            return None
    except ModelError:  # a batch does not run at other parameters
        return None
    sites = {n: _with_links(s, union.sites[n]) if n in varying else s for n, s in reader.known.items()}
    return replace(reader, known=sites, union=union)


def _varying(reader: Reader, stream: Stream, union: AllBatches) -> frozenset[str] | None:
    """Sites with selections of their own in some batch; families of the others are joined, and moments added up, in
    ``union``. ``None`` where a batch has other sites.
    """
    varying: set[str] = set()
    for share in stream:
        theta, parts = reader.draw(share, reader.distinct[0])
        if parts is None:
            return None
        odd = {
            n
            for n, s in reader.known.items()
            if not are_explained(parts[n], s.routes, reader.coordinates, theta, stream.plates)
        }
        varying |= odd
        for name in union.sites:
            if name not in odd:
                union.sites[name] = _with_family(union.sites[name], parts[name])
            if any(a.location for a in parts[name].family.args):
                found = moments_of(parts[name])
                union.moments[name] = union.moments[name] + found if name in union.moments else found
    return frozenset(varying)


def _unite(reader: Reader, stream: Stream, union: AllBatches) -> bool:
    """Probe all batches and gather what varies in ``union``; whether they are of one kind."""
    for share in stream:
        program, known = share.inference.program, reader.known
        own = probe(program, reader.space, share.args, share.kwargs, Intervention()).sites
        if not all(n in own and are_of_a_kind(own[n], s, reader.coordinates) for n, s in known.items()):
            return False
        if not all(are_of_a_kind(own[n], union.sites[n], reader.coordinates) for n in reader.varying):
            return False
        for name in reader.varying:
            whole = union.sites[name] = united(union.sites[name], condensed(trimmed(own[name])))
            if not may_be_held(_size(whole)):  # it has arguments of its own for every datum
                return False
    return True


def _with_family(site: ProbedSite, parts: SiteParts) -> ProbedSite:
    """The site with a family that serves the data of a batch, too."""
    assert isinstance(site.parts, SiteParts)
    return replace(site, parts=replace(site.parts, family=site.parts.family.join(parts.family)))


def _with_links(site: ProbedSite, union: ProbedSite) -> ProbedSite:
    """A site whose selections have the links of all batches; on the first they may all be constants."""
    links: dict[str, Any] = {n: r.link for n, r in union.routes.items() if isinstance(r, Selected)}
    routes = {n: replace(r, link=links[n]) if isinstance(r, Selected) else r for n, r in site.routes.items()}
    return replace(site, routes=routes)


def _size(site: ProbedSite) -> int:
    return sum(r.index.numel() for r in site.routes.values() if isinstance(r, Selected))
