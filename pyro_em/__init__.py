"""Fit a Pyro model with latent variables by EM or by SVI, with one call and one result."""

from pyro_em.em import EM, GradientMStep, KMeans, RandomDraws, RandomResponsibilities
from pyro_em.errors import DecreaseError, DegenerateError, InformationError, ModelError, SaveError, StartError
from pyro_em.fit import fit
from pyro_em.result import FitResult
from pyro_em.status import Status
from pyro_em.strategy import StepInfo, Strategy
from pyro_em.svi import SVI

__all__ = [
    "EM",
    "SVI",
    "DecreaseError",
    "DegenerateError",
    "FitResult",
    "GradientMStep",
    "InformationError",
    "KMeans",
    "ModelError",
    "RandomDraws",
    "RandomResponsibilities",
    "SaveError",
    "StartError",
    "Status",
    "StepInfo",
    "Strategy",
    "fit",
]
__version__ = "0.1.0"
