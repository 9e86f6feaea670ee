"""Families of distributions with a known M-step: one file each, and one line here."""

from typing import Any

import pyro.distributions as dist

from pyro_em.families.base import Argument, Augmented, Cells, Family, expected_log_likelihood
from pyro_em.families.bernoulli import Bernoulli, Binomial
from pyro_em.families.beta import Beta
from pyro_em.families.categorical import Categorical, Multinomial, OneHotCategorical
from pyro_em.families.dirichlet import Dirichlet
from pyro_em.families.exponential import Exponential, Geometric
from pyro_em.families.gamma import Gamma
from pyro_em.families.multivariate_normal import MultivariateNormal
from pyro_em.families.negative_binomial import NegativeBinomial
from pyro_em.families.normal import LogNormal, Normal
from pyro_em.families.poisson import Poisson
from pyro_em.families.student_t import StudentT
from pyro_em.families.von_mises import VonMises
from pyro_em.families.zero_inflated_poisson import ZeroInflatedPoisson

__all__ = ["FAMILIES", "Argument", "Augmented", "Cells", "Family", "expected_log_likelihood", "family_of"]

FAMILIES: dict[type, type[Family]] = {
    dist.Bernoulli: Bernoulli,
    dist.Beta: Beta,
    dist.Binomial: Binomial,
    dist.Categorical: Categorical,
    dist.Dirichlet: Dirichlet,
    dist.Exponential: Exponential,
    dist.Gamma: Gamma,
    dist.Geometric: Geometric,
    dist.LogNormal: LogNormal,
    dist.Multinomial: Multinomial,
    dist.MultivariateNormal: MultivariateNormal,
    dist.NegativeBinomial: NegativeBinomial,
    dist.Normal: Normal,
    dist.OneHotCategorical: OneHotCategorical,
    dist.Poisson: Poisson,
    dist.StudentT: StudentT,
    dist.VonMises: VonMises,
    dist.ZeroInflatedPoisson: ZeroInflatedPoisson,
}


def family_of(fn: Any) -> type[Family] | None:
    """The family of a distribution without wrappers; ``None`` where it is unknown, also for a subclass, whose density
    may be another.
    """
    return FAMILIES.get(type(fn))
