"""Expectation-maximisation: exact E-step, gradient M-step."""

from pyro_em.em.m_step import GradientMStep
from pyro_em.em.strategy import EM

__all__ = ["EM", "GradientMStep"]
