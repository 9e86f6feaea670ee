"""Which ``torch.nn.Module`` objects a model or guide can reach.

Pyro reports a module's parameters when the model runs, but not its buffers (batch-norm statistics), which running the
model changes too. To put them back, the modules themselves must be found: the callable's own object, what it closes
over, the globals it names, and what a ``partial`` or a wrapping handler carries.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from torch.nn import Module

__all__ = ["reachable_modules"]


def reachable_modules(*roots: Any) -> list[Module]:
    """Modules reachable from ``roots`` in a few steps, each once, in order of discovery."""
    found: list[Module] = []
    seen: set[int] = set()
    queue: list[Any] = [root for root in roots if root is not None]
    while queue:
        item = queue.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Module):
            found.append(item)
        queue.extend(_neighbours(item))
    return found


def _neighbours(item: Any) -> list[Any]:
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, list | tuple | dict):
        return _modules_in(item.values() if isinstance(item, dict) else item)
    code = getattr(item, "__code__", None)
    near = [getattr(item, name, None) for name in ("__self__", "__func__", "__wrapped__")]
    if code is not None:
        near += [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
        near += [item.__globals__[name] for name in code.co_names if name in item.__globals__]
    elif hasattr(item, "__dict__") and not isinstance(item, type | Module):
        near += _modules_in(vars(item).values())
    return [n for n in near if n is not None and not isinstance(n, type) and not _is_library(n)]


def _modules_in(items: Any) -> list[Any]:
    return [item for item in items if isinstance(item, Module | functools.partial) or callable(item)]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _is_library(item: Any) -> bool:
    if isinstance(item, Module | functools.partial):
        return False
    origin = getattr(item, "__module__", None) or getattr(item, "__name__", "")
    return isinstance(item, ModuleType) or str(origin).split(".")[0] in {"torch", "numpy", "builtins"}
