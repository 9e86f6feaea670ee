"""Masks and missing data."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.constraints import simplex, unit_interval
from torch import Tensor

from programs.base import Made, f64, program


@program("plate", "mask")
def masked_latent() -> Made:
    def model(x: Tensor, present: Tensor) -> None:
        weights = pyro.param("weights", f64([0.31, 0.69]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.5, 1.4]))
        with pyro.plate("data", len(x)), poutine.mask(mask=present):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.9)), obs=x)

    return model, (f64([0.3, -0.8, 1.9, 0.7]), torch.tensor([True, False, True, True])), {}


@program("plate", "mask", "nan")
def nan_under_poutine_mask() -> Made:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.31, 0.69]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.5, 1.4]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            with poutine.mask(mask=~x.isnan()):
                pyro.sample("x", dist.Normal(locs[z], f64(0.9), validate_args=False), obs=x)

    return model, (f64([0.3, float("nan"), 1.9, 0.7]),), {}


@program("plate", "mask", "nan")
def nan_under_dist_mask() -> Made:
    """Missing entries of a vector-valued observation, not missing rows."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", f64([0.56, 0.44]), constraint=simplex)
        locs = pyro.param("locs", f64([[-0.6, 0.2, 1.0], [1.3, 0.5, -0.4]]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            entries = dist.Normal(locs[z], f64(0.8), validate_args=False).mask(~x.isnan())
            pyro.sample("x", entries.to_event(1), obs=x)

    nan = float("nan")
    return model, (f64([[0.4, nan, 0.9], [nan, nan, -0.7], [1.1, 0.3, nan], [nan, nan, nan]]),), {}


@program("plate", "obs_mask")
def obs_mask_continuous() -> Made:
    """Pyro imputes the hidden value by sampling it; nothing depends on it, so it sums to one."""

    def model(x: Tensor, seen: Tensor) -> None:
        weights = pyro.param("weights", f64([0.41, 0.59]), constraint=simplex)
        locs = pyro.param("locs", f64([-0.7, 1.2]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], f64(0.8)), obs=x, obs_mask=seen)

    return model, (f64([0.6, -1.2, 0.0, 1.5]), torch.tensor([True, True, False, True])), {}


@program("plate", "obs_mask", "family")
def obs_mask_bernoulli() -> Made:
    def model(x: Tensor, seen: Tensor) -> None:
        weights = pyro.param("weights", f64([0.41, 0.59]), constraint=simplex)
        probs = pyro.param("probs", f64([0.2, 0.75]), constraint=unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Bernoulli(probs[z]), obs=x, obs_mask=seen)

    return model, (f64([1.0, 0.0, 1.0]), torch.tensor([True, False, True])), {}


@program("plate", "obs_mask")
def partly_labelled() -> Made:
    """Semi-supervised: the imputed labels matter, since x depends on them."""

    def model(x: Tensor, labels: Tensor, known: Tensor) -> None:
        weights = pyro.param("weights", f64([0.2, 0.55, 0.25]), constraint=simplex)
        locs = pyro.param("locs", f64([-1.1, 0.4, 1.9]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=known)
            pyro.sample("x", dist.Normal(locs[z], f64(0.9)), obs=x)

    known = torch.tensor([True, False, True, False])
    return model, (f64([-0.4, 0.8, 0.3, 1.7]), torch.tensor([0, 0, 2, 0]), known), {}
