"""The ``torch.nn.Module`` objects a model or guide can reach, and how to leave them as they were found.

Pyro reports a module's parameters when the model runs, but running it changes more: buffers (batch-norm statistics),
``train``/``eval`` flags, gradients of parameters that Pyro does not know, and everything an automatic guide builds the
first time it is called. To put it all back, the modules themselves must be found: the callable's own object, what it
closes over, the globals it names, and what a ``partial``, a container or a wrapping handler carries.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.nn import Module

__all__ = ["ModuleStates", "named_modules", "reachable_modules"]


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
        return _worth_a_look(item.values() if isinstance(item, dict) else item)
    code = getattr(item, "__code__", None)
    near = [getattr(item, name, None) for name in ("__self__", "__func__", "__wrapped__")]
    if code is not None:
        near += [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
        near += [item.__globals__[name] for name in code.co_names if name in item.__globals__]
    elif hasattr(item, "__dict__") and not isinstance(item, type | Module):
        near += _worth_a_look(vars(item).values())
    return [n for n in near if n is not None and not isinstance(n, type) and not _is_library(n)]


def _worth_a_look(items: Any) -> list[Any]:
    return [i for i in items if callable(i) or isinstance(i, list | tuple | dict) or _is_plain_object(i)]


def _is_plain_object(item: Any) -> bool:
    """An object of the user's own, which may hold modules; tensors and imported modules are not looked into."""
    return hasattr(item, "__dict__") and not isinstance(item, Tensor | ModuleType)


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


def named_modules(**roots: Any) -> dict[str, Module]:
    """Modules that each root reaches, with all their submodules, by a name that the same program gives again."""
    return {
        f"{key}.{i}.{name}": module
        for key, root in roots.items()
        for i, top in enumerate(reachable_modules(root))
        for name, module in top.named_modules()
    }


class ModuleStates:
    """The attributes of modules, their dictionaries of parameters, buffers and submodules, and buffers by value.

    Args:
        modules: captured with all their submodules.
    """

    def __init__(self, modules: list[Module]) -> None:
        every = list({id(m): m for root in modules for m in root.modules()}.values())
        self._attributes = [(m, {k: (v, _contents(v)) for k, v in vars(m).items()}) for m in every]
        self._buffers = [(b, b.detach().clone()) for m in every for b in m.buffers(recurse=False)]
        self._grads = [(p, p.grad) for m in every for p in m.parameters(recurse=False)]

    def reinstate(self) -> None:
        """Make the modules what they were: the same objects in the same dictionaries, buffers with the same values."""
        for module, attributes in self._attributes:
            state = vars(module)
            state.clear()
            for name, (value, contents) in attributes.items():
                if contents is not None:
                    value.clear()
                    value.update(contents)
                state[name] = value
        for buffer, value in self._buffers:
            buffer.data.copy_(value)
        for parameter, grad in self._grads:
            parameter.grad = grad


def _contents(value: Any) -> dict[Any, Any] | None:
    return dict(value) if isinstance(value, dict) else None
