"""Parameters of one fit: found, isolated, read, written, saved and put back.

This is the only module that touches Pyro's param store. While a :class:`ParamSpace` is active the global store is a
private one; when it closes, the store, every module parameter that the model registered, every buffer and every
``requires_grad`` leaf hold what they held before. Values live in unconstrained coordinates: a leaf found in the store
is *the* tensor that ``pyro.param``, ``PyroParam`` and ``pyro.module`` all see, so values are copied into it and the
leaf itself is never replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_em.errors import StartError
from pyro_em.modules import ModuleStates, reachable_modules
from pyro_em.zeros import StartValues, Zeros

__all__ = ["Leaf", "ParamSpace"]


@dataclass(frozen=True)
class Leaf:
    """One parameter: its name, the unconstrained leaf tensor that autograd sees, and its constraint.

    Attributes:
        zeros: of the constrained value's shape, where a simplex is exactly zero and stays so; ``None`` without any.
            :meth:`value` does not know them, see :meth:`ParamSpace.exact`.
    """

    name: str
    unconstrained: Tensor
    constraint: Any
    zeros: Tensor | None = None

    def value(self) -> Tensor:
        """The constrained value, differentiable in the leaf."""
        return transform_to(self.constraint)(self.unconstrained)

    def unconstrain(self, value: Tensor) -> Tensor:
        """Map a constrained value to this leaf's coordinates, or say why it cannot start a fit."""
        value = torch.as_tensor(value).detach().to(self.unconstrained)
        shape = tuple(self.value().shape)
        if tuple(value.shape) != shape:
            raise StartError(f"Parameter {self.name!r} has shape {shape}; init gives {tuple(value.shape)}.")
        if not bool(self.constraint.check(value).all()):
            raise StartError(f"Parameter {self.name!r} must satisfy {self.constraint}; init gives {value}.")
        point = transform_to(self.constraint).inv(value)
        self.check_interior(point)
        return point

    def check_interior(self, point: Tensor) -> None:
        """Refuse a value on the edge of the constraint: it is infinite in unconstrained coordinates."""
        if not bool(torch.isfinite(point).all()):
            raise StartError(
                f"Parameter {self.name!r} starts on the boundary of {self.constraint} (or is not finite), where no "
                "step can leave from. Start it inside; to keep exact zeros, write them as constants in the model."
            )


def _differentiable(item: Any) -> list[Tensor]:
    """Leaf tensors among the caller's arguments that a backward pass would leave gradients on."""
    if isinstance(item, Tensor):
        return [item] if item.requires_grad and item.is_leaf else []
    items = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
    return [tensor for part in items for tensor in _differentiable(part)]


class ParamSpace:
    """Every parameter of one fit, and the private store it lives in.

    Args:
        roots: callables whose reachable ``torch.nn.Module``\\ s must be left as they were found (model, guide).
    """

    def __init__(self, *roots: Any) -> None:
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}
        self._latents: dict[str, Leaf] = {}
        self._saved: dict[str, Tensor] = {}
        self._saved_modules: ModuleStates | None = None
        self._roots = roots
        self._zeros = Zeros()
        self._before: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}

    @contextmanager
    def active(self) -> Iterator[ParamSpace]:
        """Enter the private store with the saved values in place; on exit put everything back as it was."""
        outer_before, self._before = self._before, {}
        modules_before = ModuleStates(reachable_modules(*self._roots))
        grads_before = [(t, t.grad) for t in _differentiable(self._roots)]
        with pyro.get_param_store().scope(self._store), StartValues(self._zeros):
            try:
                self.track()
                self.recall()
                yield self
            finally:
                self.track()
                for leaf, value, grad in self._before.values():
                    leaf.data.copy_(value)
                    leaf.grad = grad
                modules_before.reinstate()
                for tensor, grad in grads_before:
                    tensor.grad = grad
                self._before = outer_before

    def track(self) -> None:
        """Remember what each newly found leaf held, so that it can be put back; call after running the model."""
        for name, leaf in pyro.get_param_store().named_parameters():
            if name not in self._before:
                self._before[name] = (leaf, leaf.detach().clone(), leaf.grad)
                leaf.grad = None

    def forget(self) -> None:
        """Drop all parameters, so that the next run of the model makes them anew."""
        for leaf, value, grad in self._before.values():
            leaf.data.copy_(value)
            leaf.grad = grad
        pyro.get_param_store().clear()
        self._latents.clear()

    def add_latent(self, name: str, value: Tensor, constraint: Any) -> None:
        """Make a point-estimated latent a parameter of this fit, starting at ``value``."""
        point = transform_to(constraint).inv(value.detach())
        leaf = Leaf(name, point.clone().requires_grad_(True), constraint)
        leaf.check_interior(point)
        self._latents[name] = leaf

    def latents(self) -> dict[str, Tensor]:
        """Constrained values of the point-estimated latents, differentiable in their leaves."""
        return {name: leaf.value() for name, leaf in self._latents.items()}

    def leaves(self) -> dict[str, Leaf]:
        """Every parameter by name: those of the store, then point-estimated latents."""
        store = pyro.get_param_store()
        constraint_of = store.get_state()["constraints"]
        zeros = self._zeros.zeros
        found = {
            n: Leaf(n, u, constraint_of.get(n, constraints.real), zeros.get(n)) for n, u in store.named_parameters()
        }
        return {**found, **self._latents}

    def distinct(self) -> dict[str, Leaf]:
        """Every parameter once: where a module holds one tensor under several names, under the first."""
        found: dict[int, tuple[str, Leaf]] = {}
        for name, leaf in self.leaves().items():
            found.setdefault(id(leaf.unconstrained), (name, leaf))
        return dict(found.values())

    def free(self, fixed: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """The unconstrained leaves an optimiser may move: all but the ``fixed`` ones, each tensor once."""
        leaves = self.leaves()
        unknown = [name for name in fixed if name not in leaves]
        if unknown:
            raise StartError(f"fixed={unknown} names no parameter of the model, which has {sorted(leaves)}.")
        held = {id(leaves[name].unconstrained) for name in fixed}
        return {n: leaf.unconstrained for n, leaf in self.distinct().items() if id(leaf.unconstrained) not in held}

    def start_from(self, values: Mapping[str, Tensor], *, strict: bool = True) -> None:
        """Write the caller's start values; zeros on the simplex stay zeros from here on.

        Raises:
            StartError: an unknown name (when ``strict``), a wrong shape, or a value outside its constraint.
        """
        leaves = self.leaves()
        known = {n: torch.as_tensor(v) for n, v in values.items() if n in leaves}
        unknown = {n: v for n, v in values.items() if n not in leaves}
        moved = {n: self._zeros.take(n, v, leaves[n].constraint) for n, v in known.items()}
        self.assign({**unknown, **moved}, strict=strict)

    def assign(self, values: Mapping[str, Tensor], *, strict: bool = True) -> None:
        """Write constrained values; all are checked before any is written.

        Raises:
            StartError: an unknown name (when ``strict``), a wrong shape, or a value outside its constraint.
        """
        leaves = self.leaves()
        unknown = [name for name in values if name not in leaves]
        if unknown and strict:
            raise StartError(f"init names {unknown}; the model's parameters are {sorted(leaves)}.")
        points = {name: leaves[name].unconstrain(v) for name, v in values.items() if name in leaves}
        self.restore(points)

    def assign_nearest(self, values: Mapping[str, Tensor]) -> None:
        """Write constrained values that a fit arrived at; on the edge of a constraint, the nearest that has finite
        coordinates in the leaf's own precision.
        """
        leaves = self.leaves()
        for name, value in values.items():
            leaf = leaves[name]
            point = transform_to(leaf.constraint).inv(value.detach().to(leaf.unconstrained.dtype))
            edge = 0.98 * math.log(torch.finfo(point.dtype).max)
            leaf.unconstrained.data.copy_(point.nan_to_num(nan=0.0, posinf=edge, neginf=-edge))

    def exact(self, name: str, value: Tensor) -> Tensor:
        """A value of a parameter with the zeros that it started with; differentiable."""
        return self._zeros.exact(name, value)

    def zeros(self) -> dict[str, Tensor]:
        """By parameter that has any: where a simplex is exactly zero and stays so, a mask of its shape."""
        return dict(self._zeros.zeros)

    def put_zeros(self, zeros: Mapping[str, Tensor]) -> None:
        """Let zeros be where they were in another space, and nowhere else."""
        self._zeros.zeros = dict(zeros)

    def without_zeros(self) -> AbstractContextManager[None]:
        """Hand out values of parameters as their leaves have them, for the body of a ``with``."""
        return self._zeros.suspended()

    def check_start(self) -> None:
        """Refuse a model whose own initial values lie on the edge of their constraint."""
        for leaf in self.leaves().values():
            leaf.check_interior(leaf.unconstrained.detach())

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all unconstrained values."""
        return {name: leaf.unconstrained.detach().clone() for name, leaf in self.leaves().items()}

    def restore(self, points: Mapping[str, Tensor]) -> None:
        """Write unconstrained values back into their leaves."""
        leaves = self.leaves()
        for name, point in points.items():
            leaves[name].unconstrained.data.copy_(point)

    def save(self) -> None:
        """Keep the present values for the next time the space is entered."""
        self._saved = self.snapshot()
        self._saved_modules = ModuleStates(reachable_modules(*self._roots))

    def recall(self) -> None:
        """Put the values of the last :meth:`save` in place."""
        self.restore(self._saved)
        if self._saved_modules is not None:
            self._saved_modules.reinstate()

    def values(self) -> dict[str, Tensor]:
        """Copies of all constrained values."""
        return {name: self.exact(name, leaf.value().detach().clone()) for name, leaf in self.leaves().items()}
