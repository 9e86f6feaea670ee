"""Stochastic variational inference with a guide, amortised or not."""

from pyro_em.svi.strategy import SVI

__all__ = ["SVI"]
