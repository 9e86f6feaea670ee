"""Families of distributions with a known M-step: one file each, and one line here."""

from typing import Any

import pyro.distributions as dist

from pyro_em.families.base import Argument, Augmented, Cells, Family, expected_log_likelihood
from pyro_em.families.bernoulli import Bernoulli, Binomial
from pyro_em.families.categorical import Categorical, Multinomial, OneHotCategorical
from pyro_em.families.exponential import Exponential, Geometric
from pyro_em.families.multivariate_normal import MultivariateNormal
from pyro_em.families.normal import LogNormal, Normal
from pyro_em.families.poisson import Poisson

__all__ = ["FAMILIES", "Argument", "Augmented", "Cells", "Family", "expected_log_likelihood", "family_of"]

FAMILIES: dict[type, type[Family]] = {
    dist.Bernoulli: Bernoulli,
    dist.Binomial: Binomial,
    dist.Categorical: Categorical,
    dist.Exponential: Exponential,
    dist.Geometric: Geometric,
    dist.LogNormal: LogNormal,
    dist.Multinomial: Multinomial,
    dist.MultivariateNormal: MultivariateNormal,
    dist.Normal: Normal,
    dist.OneHotCategorical: OneHotCategorical,
    dist.Poisson: Poisson,
}


def family_of(fn: Any) -> type[Family] | None:
    """The family of a distribution without wrappers; ``None`` where it is unknown, also for a subclass, whose density
    may be another.
    """
    return FAMILIES.get(type(fn))
