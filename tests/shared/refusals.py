"""Fits that must be refused, by either strategy."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from untouched import refused

from pyro_em import EM, SVI, ModelError, fit

__all__ = ["BOTH", "X", "refuse", "two_weights"]

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
BOTH = pytest.mark.parametrize("strategy", [EM(max_steps=1), SVI(max_steps=1)], ids=["em", "svi"])


def refuse(model, match, *args, strategy=None, error=ModelError):
    """Fit and expect the refusal."""
    with refused(error, match):
        fit(model, *(args or (X,)), strategy=strategy or EM(), progress=False, seed=1)


def two_weights():
    return pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=dist.constraints.simplex)
