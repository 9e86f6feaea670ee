"""Log-probabilities where the libraries' own are not what the model says.

Missing entries (NaN) under a mask: ``where(mask, log_prob(NaN), 0)`` has the right value and a NaN gradient, and Pyro's
validation refuses NaN outright. So NaN entries are replaced by one finite entry of the same data before the density is
taken - once it is certain that the mask hides each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.hidden import hidden_of, is_hidden
from pyro_em.graph.impossible import with_true_zeros

__all__ = ["log_prob", "without_missing"]


def log_prob(site: dict[str, Any]) -> Tensor:
    """The unscaled log-density at a site, finite in value and gradient where missing entries are masked.

    Raises:
        ModelError: a NaN entry that no mask hides.
    """
    value = without_missing(site)
    if is_hidden(site["fn"]):  # Pyro's own takes K^3 for each time, and its gradient vanishes where factors disagree
        return hidden_of(site["fn"], value).log_prob()
    return with_true_zeros(site["fn"]).log_prob(value, *site["args"], **site["kwargs"])


def without_missing(site: dict[str, Any]) -> Any:
    """A site's value with a finite number in place of each NaN.

    Raises:
        ModelError: a NaN entry that no mask hides.
    """
    value = site["value"]
    if not (site["is_observed"] and isinstance(value, Tensor) and value.is_floating_point()):
        return value
    missing = value.isnan()
    if not bool(missing.any()):
        return value
    if not site["infer"].get("_nan_checked"):
        _check_hidden(site)
        site["infer"]["_nan_checked"] = True
    return torch.where(missing, _stand_in(site, missing), value)


def _check_hidden(site: dict[str, Any]) -> None:
    with torch.no_grad(), _without_validation(site["fn"]):
        seen = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    if bool(seen.isnan().any()):
        raise ModelError(
            f"Site {site['name']!r} observes NaN that no mask hides. Hide missing entries, for instance by "
            "`with poutine.mask(mask=~x.isnan().any(-1)):` for whole rows, or `fn.mask(~x.isnan()).to_event(1)` for "
            "entries."
        )


def _stand_in(site: dict[str, Any], missing: Tensor) -> Tensor:
    present = site["value"][~missing]
    if present.numel():
        return present[0]
    with torch.no_grad():
        return site["fn"].sample().reshape(-1)[0]


@contextmanager
def _without_validation(fn: Any) -> Iterator[None]:
    """Pyro refuses NaN as outside the support before any mask is applied."""
    layers = [fn]
    while inner := getattr(layers[-1], "base_dist", getattr(layers[-1], "observation_dist", None)):
        layers.append(inner)
    before = [layer._validate_args for layer in layers]
    try:
        for layer in layers:
            layer._validate_args = False
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer._validate_args = flag
