"""How the parameters of a model reach its distributions, found out by running it at distinct values."""

from pyro_em.probing.coordinates import Coordinates
from pyro_em.probing.links import LINKS
from pyro_em.probing.probe import Probed, ProbedSite, explains, probe
from pyro_em.probing.routes import Affine, Opaque, Route, Selected, values_of
from pyro_em.probing.sites import SiteParts, Stack

__all__ = [
    "LINKS",
    "Affine",
    "Coordinates",
    "Opaque",
    "Probed",
    "ProbedSite",
    "Route",
    "Selected",
    "SiteParts",
    "Stack",
    "explains",
    "probe",
    "values_of",
]
