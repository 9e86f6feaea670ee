"""Densities of sites that differ in their numbers only, evaluated by one call for all of them.

A loop of a thousand steps has thousands of sites, whose densities take longer to call than to compute. So arguments and
values of alike sites are stacked, and the distribution's own ``log_prob`` is called once on the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, ExpTransform

from pyro_em.graph.trace import Site

__all__ = ["FEW", "kind_of", "stacked"]

FEW = 8  # sites, up to which one by one is as fast
LARGE = 4096  # numbers in a tensor, beyond which the time of a call does not count and memory does
PLAIN = (int, float, bool, str, torch.Size, type(None))
# Where distributions keep what they say they keep: one entry of each argument for each element of the batch.
LIBRARIES = (
    "torch.distributions.",
    "pyro.distributions.torch",
    "pyro.distributions.zero_inflated",
    "pyro.distributions.conjugate",
)
# Tensors that distributions keep beside their arguments, with the number of dimensions of an entry.
RANKS = {"_unbroadcasted_scale_tril": 2, "_mask": 0, "concentration": 0, "rate": 0}


def kind_of(site: Site) -> object:
    """What sites must have in common to be stacked; ``None`` where a site cannot be."""
    value = site["value"]
    if site["args"] or site["kwargs"] or site["mask"] is not None or not isinstance(value, Tensor):
        return None
    if value.layout is not torch.strided or value.numel() > LARGE:
        return None
    kind = _kind(site["fn"])
    summed = site["infer"].get("_is_summed")
    return kind and (kind, value.shape, value.dtype, site["is_observed"], bool(summed))


def _kind(fn: Any) -> tuple[object, ...] | None:
    """The type of a distribution, and the shapes of all that it holds."""
    if not type(fn).__module__.startswith(LIBRARIES):
        return None
    found: list[object] = [type(fn), tuple(fn._batch_shape)]
    batch = len(fn._batch_shape)
    for name, held in vars(fn).items():
        if name == "_batch_shape":
            continue
        if isinstance(held, Tensor):
            rank = _rank(fn, name)
            if rank is None or held.dim() != batch + rank or held.numel() > LARGE or held.layout is not torch.strided:
                return None
            found.append((name, held.shape, held.dtype))
        elif isinstance(held, Distribution):
            inner = _kind(held)
            if inner is None:
                return None
            found.append((name, inner))
        elif isinstance(held, PLAIN):
            found.append((name, held))
        elif isinstance(held, list) and all(type(part) is ExpTransform for part in held):
            found.append((name, len(held)))
        else:
            return None
    return tuple(found)


def _rank(fn: Any, name: str) -> int | None:
    """Number of dimensions of an entry of a tensor that a distribution holds; ``None`` where it is not known."""
    constraint = fn.arg_constraints.get("probs" if name == "_param" else name)
    try:
        return RANKS.get(name) if constraint is None else int(constraint.event_dim)
    except NotImplementedError:  # it depends on the arguments
        return None


def stacked(sites: Sequence[Site]) -> Site | None:
    """One site for several of one kind, whose first batch dimension counts them; ``None`` where data are missing."""
    first = sites[0]
    event, batch = first["fn"].event_dim, len(first["fn"].batch_shape)
    values = torch.stack([s["value"] for s in sites])
    if first["is_observed"] and values.is_floating_point() and not bool(values.isfinite().all()):
        return None
    width = max(batch, first["value"].dim() - event)
    values = _spaced(values, width + event)
    return {**first, "fn": _stack([s["fn"] for s in sites], width), "value": values, "infer": dict(first["infer"])}


def _stack(fns: Sequence[Any], width: int) -> Any:
    """A distribution over a first batch dimension of their number and ``width`` more."""
    first = fns[0]
    new = object.__new__(type(first))
    batch = len(first._batch_shape)
    lead = width - batch
    for name, held in vars(first).items():
        if isinstance(held, Tensor):
            together = torch.stack([vars(fn)[name] for fn in fns])
            vars(new)[name] = _spaced(together, held.dim() + lead)
        elif isinstance(held, Distribution):
            inner = len(held._batch_shape) - batch
            vars(new)[name] = _stack([vars(fn)[name] for fn in fns], width + inner)
        else:
            vars(new)[name] = held
    new._batch_shape = torch.Size([len(fns), *[1] * lead, *first._batch_shape])
    return new


def _spaced(tensor: Tensor, dims: int) -> Tensor:
    """The tensor with singletons after its first dimension, so that ``dims`` follow it."""
    return tensor.reshape(tensor.shape[0], *[1] * (dims + 1 - tensor.dim()), *tensor.shape[1:])
