"""Expectation-maximisation: exact E-step, exact or gradient M-step."""

from pyro_em.em.m_step import GradientMStep
from pyro_em.em.starts import KMeans, RandomDraws, RandomResponsibilities
from pyro_em.em.strategy import EM

__all__ = ["EM", "GradientMStep", "KMeans", "RandomDraws", "RandomResponsibilities"]
