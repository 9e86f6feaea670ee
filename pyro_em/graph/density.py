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
from pyro_em.graph.core import core_of
from pyro_em.graph.hidden import hidden_of, is_hidden
from pyro_em.graph.impossible import with_true_zeros

__all__ = ["log_prob", "without_missing"]


def log_prob(site: dict[str, Any]) -> Tensor:
    """The unscaled log-density at a site, finite in value and gradient where missing entries are masked.

    Raises:
        ModelError: a NaN or infinite entry that no mask hides, or a value outside of the distribution's support.
    """
    value = without_missing(site)
    if is_hidden(site["fn"]):  # Pyro's own takes K^3 for each time, and its gradient vanishes where factors disagree
        return hidden_of(site["fn"], value).log_prob()
    fn = with_true_zeros(site["fn"])
    try:
        found: Tensor = fn.log_prob(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ModelError(
            f"Site {site['name']!r} gives no density to its value; check the data, and the constraints of parameters. "
            f"torch says: {error}"
        ) from error
    return found


def without_missing(site: dict[str, Any]) -> Any:
    """A site's value with a finite number in place of each NaN and infinity.

    Raises:
        ModelError: a NaN or infinite entry that no mask hides.
    """
    value = site["value"]
    if not (site["is_observed"] and isinstance(value, Tensor) and value.is_floating_point()):
        return value
    missing = ~value.isfinite()
    if not bool(missing.any()):
        return value
    if not site["infer"].get("_nan_checked"):
        _check_hidden(site)
        site["infer"]["_nan_checked"] = True
    return _whole(site, missing, torch.where(missing, _entry(site, missing), value))


def _whole(site: dict[str, Any], missing: Tensor, value: Tensor) -> Tensor:
    """The value with all of a vector replaced where one of its entries was, and what that leaves is none any more: a
    point of a simplex, a one among zeros, counts of a total.
    """
    fn = core_of(site["fn"]).fn
    event = 0 if is_hidden(fn) else fn.event_dim
    if not event:
        return value
    try:
        valid = fn.support.check(value)
    except NotImplementedError:
        return value
    parts = missing.flatten(value.dim() - event).any(-1)
    if valid.shape != parts.shape or not bool((parts & ~valid).any()):
        return value
    present = site["value"][~parts]
    if len(present):
        whole = present[0]
    else:
        with torch.no_grad():
            drawn: Tensor = site["fn"].sample()
        whole = drawn.reshape(-1, *drawn.shape[drawn.dim() - event :])[0]
    return torch.where((parts & ~valid).reshape([*parts.shape, *[1] * event]), whole, value)


def _entry(site: dict[str, Any], missing: Tensor) -> Tensor:
    """One that is there."""
    present = site["value"][~missing]
    if present.numel():
        return present[0]
    with torch.no_grad():
        return site["fn"].sample().reshape(-1)[0]


def _check_hidden(site: dict[str, Any]) -> None:
    value, event = site["value"], site["fn"].event_dim
    missing = ~value.isfinite()
    rows = missing.flatten(value.dim() - event).any(-1) if event else missing
    try:
        with torch.no_grad(), _without_validation(site["fn"]):
            bare = ~scale_and_mask(site["fn"].log_prob(value), mask=site["mask"]).isfinite() & rows
    except (IndexError, RuntimeError):  # NaN as the index of a category: the masks themselves must tell
        bare = missing
        for mask, events in ((site["mask"], 0), *core_of(site["fn"]).masks):
            if mask is not None:
                shown = torch.as_tensor(mask)
                bare = bare & shown.reshape([*shown.shape, *[1] * (event - events)])
    if bool(bare.any()):
        raise ModelError(
            f"Site {site['name']!r} observes NaN or an infinite value that no mask hides. Hide missing entries, for "
            "instance by `with poutine.mask(mask=x.isfinite().all(-1)):` for whole rows, or "
            "`fn.mask(x.isfinite()).to_event(1)` for entries."
        )


@contextmanager
def _without_validation(fn: Any) -> Iterator[None]:
    """Pyro refuses NaN as outside the support before any mask is applied."""
    layers = [fn]
    for layer in layers:  # grows on the way
        layers += [inner for inner in vars(layer).values() if isinstance(inner, torch.distributions.Distribution)]
    before = [layer._validate_args for layer in layers]
    try:
        for layer in layers:
            layer._validate_args = False
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer._validate_args = flag
