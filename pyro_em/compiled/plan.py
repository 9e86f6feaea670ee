"""From a probed model to who maximises what: tensors, regressions, and what only the traced gradient can move."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from pyro_em.compiled.model import TensorModel, tensor_model
from pyro_em.compiled.ownership import Ownership, share_out
from pyro_em.compiled.priors import Prior
from pyro_em.compiled.regression import Regressions
from pyro_em.compiled.roles import regressions_of
from pyro_em.errors import ModelError
from pyro_em.graph.build import datum_weights, site_scale
from pyro_em.graph.factor import together
from pyro_em.probing import Affine, Opaque, Probed, ProbedSite, SiteParts
from pyro_em.probing.condensed import AllBatches
from pyro_em.probing.weight import of_weight

__all__ = ["Plan", "connected", "known_sites", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """A model divided among its owners.

    Attributes:
        probed: what it rests on.
        model: the sites that are known, as tensors.
        priors: densities of point estimates that count and are known.
        ownership: of what the books decide.
        regressions: of sites by element; ``None`` without any.
        gradient: parameters left to the traced gradient, and why.
        fixed: names of parameters that stay.
    """

    probed: Probed
    model: TensorModel
    priors: dict[str, Prior]
    ownership: Ownership
    regressions: Regressions | None
    gradient: dict[str, str]
    fixed: frozenset[str]

    @property
    def has_unknown_path(self) -> bool:
        """Whether some argument moves with parameters that nobody can name, so that no split of them is safe."""
        routes = [r for s in self.probed.sites.values() for r in s.routes.values()]
        return any(isinstance(r, Opaque) and not r.params for r in routes)

    @property
    def is_complete(self) -> bool:
        """Whether nothing in the model needs to be traced."""
        return not self.gradient and len(self.model.factors) == len(self.probed.sites)


def make_plan(
    probed: Probed,
    plate_weights: Mapping[str, Tensor],
    counts_priors: bool,
    fixed: Collection[str],
    union: AllBatches | None = None,
) -> Plan:
    """Divide a probed model.

    Args:
        union: of a first batch, what is known of all.
    """
    coordinates = probed.coordinates
    gradient = _opaque(probed)
    nodes = probed.found.sites
    if counts_priors:
        for name, params in probed.priors.items():
            for p in (name, *params) if params else ():
                gradient.setdefault(p, f"the prior of {name!r} has parameters")
    known = known_sites(probed)
    if gradient or len(known) < len(probed.sites):  # runs of the program do not tell the states behind a DiscreteHMM
        for site in (s for s in known if s.name not in nodes):
            for name in site.params:
                gradient.setdefault(name, f"{name!r} reaches site {site.members[0]!r} beside arguments not known")
        known = [s for s in known if s.name in nodes]
    by_element = connected(known, fixed)
    scales = {s.name: site_scale(s.name, nodes[s.members[0]]) for s in known}
    weights = datum_weights({n: nodes[n] for s in probed.sites.values() for n in s.members})
    weights = together(weights, plate_weights)
    _check_weights(probed, weights)
    known = [replace(s, parts=of_weight(s.parts, weights)) if isinstance(s.parts, SiteParts) else s for s in known]
    model = tensor_model(known, coordinates, scales, weights, by_element, union)
    known_priors = [n for n, params in probed.priors.items() if counts_priors and not params]
    priors = {n: prior for n in known_priors if not (prior := Prior(n, nodes[n])).is_flat}
    frozen = {*fixed, *gradient}
    elements = [s for s in known if s.name in by_element]
    regressions = regressions_of(elements, model, coordinates, priors, frozen)
    inside = {p for s in elements for p in s.params} - frozen
    ownership = share_out(model.books, coordinates, priors, frozen | inside)
    return Plan(probed, model, priors, ownership, regressions, gradient, frozenset(fixed))


def _check_weights(probed: Probed, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of one of several plates that a chain takes as one."""
    for site in probed.sites.values() if weights else ():
        first, *others = ({f.name for f in probed.found.sites[n]["cond_indep_stack"]} for n in site.members)
        odd = {name for names in others for name in names - first} & weights.keys()
        if odd or (others and (first - others[0]) & weights.keys()):
            raise ModelError(
                f"Weights for plate {min(odd or first)!r}, which holds site {site.name!r} of a chain at one time only. "
                "Weigh the plate that holds the whole chain, or fit with EM(m_step=GradientMStep())."
            )


def known_sites(probed: Probed) -> list[ProbedSite]:
    """The sites none of whose arguments is opaque."""
    return [s for s in probed.sites.values() if _is_known(s)]


def _is_known(site: ProbedSite) -> bool:
    return isinstance(site.parts, SiteParts) and not any(isinstance(r, Opaque) for r in site.routes.values())


def _opaque(probed: Probed) -> dict[str, str]:
    """Parameters of sites that are not known, and why not."""
    found: dict[str, str] = {}
    for site in probed.sites.values():
        if _is_known(site):
            continue
        if not isinstance(site.parts, SiteParts):
            for name in site.params:
                found.setdefault(name, f"{name!r} reaches site {site.name!r}, and {site.parts}")
            continue
        opaque = {a: r for a, r in site.routes.items() if isinstance(r, Opaque)}
        for argument, route in opaque.items():
            for name in route.params:
                found[name] = f"{name!r} reaches {argument} of site {site.name!r} {route.reason}"
        for name in site.params:
            found.setdefault(name, f"{name!r} shares site {site.name!r} with an argument that is not known")
    return found


def connected(sites: list[ProbedSite], fixed: Collection[str]) -> set[str]:
    """Sites with an affine argument, and those that share parameters with them."""
    found = {s.name for s in sites if any(isinstance(r, Affine) for r in s.routes.values())}
    while True:
        params = {p for s in sites if s.name in found for p in s.params} - set(fixed)
        more = {s.name for s in sites if params & set(s.params)} | found
        if more == found:
            return found
        found = more
