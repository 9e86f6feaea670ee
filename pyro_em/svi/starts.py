"""Where a restart of SVI begins: initial values drawn anew, and moved where the model has no random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module

from pyro_em.modules import reachable_modules
from pyro_em.params import ParamSpace

__all__ = ["draw_start"]


def draw_start(space: ParamSpace, roots: tuple[Any, ...], rerun: Callable[[], Any], fixed: tuple[str, ...]) -> None:
    """Move all but the ``fixed`` parameters to another start.

    Modules that know how (``reset_parameters``, as torch's layers do) draw their weights anew, and so does what the
    model draws when its parameters are made. What comes out the same as before is moved by standard normal noise in
    unconstrained coordinates.

    Args:
        space: holds the parameters of a first run.
        roots: callables that reach the modules.
        rerun: runs model and guide, which makes their parameters.
        fixed: names of parameters that stay.
    """
    before = space.snapshot()
    modules = _resettable(space, roots, fixed)
    space.forget()
    for module in modules:
        module.reset_parameters()
    rerun()
    for name, leaf in space.distinct().items():
        if name in fixed and name in before:
            leaf.unconstrained.data.copy_(before[name])
        elif name not in fixed and name in before and torch.equal(leaf.unconstrained.detach(), before[name]):
            leaf.unconstrained.data.add_(torch.randn_like(leaf.unconstrained))


def _resettable(space: ParamSpace, roots: tuple[Any, ...], fixed: tuple[str, ...]) -> list[Any]:
    """Layers whose every own parameter is one of this fit's, so that they are put back when it ends."""
    names = {id(leaf.unconstrained): name for name, leaf in space.leaves().items()}
    layers: dict[int, Module] = {id(m): m for root in reachable_modules(*roots) for m in root.modules()}

    def is_free(module: Module) -> bool:
        own = [names.get(id(p)) for p in module.parameters(recurse=False)]
        return bool(own) and all(name is not None and name not in fixed for name in own)

    return [m for m in layers.values() if callable(getattr(m, "reset_parameters", None)) and is_free(m)]
