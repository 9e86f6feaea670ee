"""One torch optimiser over all free parameters, from whatever the user passed.

Pyro's own wrapper keeps one optimiser per parameter and remembers parameters of earlier fits; a fit builds its own
instead, so that nothing carries over and small parameters do not cost one update call each.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pyro.optim import PyroLRScheduler
from pyro.optim.optim import PyroOptim
from pyro.params.param_store import module_from_param_with_module_name, user_param_name
from torch import Tensor

__all__ = ["LBFGS", "TRIAL", "Optimizer", "OptimizerSpec", "climbing"]

OptimizerSpec: TypeAlias = PyroOptim | Callable[[Iterable[Any]], torch.optim.Optimizer]

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


class LBFGS(torch.optim.LBFGS):
    """torch's own, which on first use imports torch's compiler, for seconds, only to tell it to keep out: two methods
    are wrapped so, and are taken here as they are inside.
    """

    add_param_group = inspect.unwrap(torch.optim.LBFGS.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.LBFGS.zero_grad)


# With a line search that asks for enough curvature (Nocedal & Wright 2006, algorithm 3.5): its steps never descend.
climbing = functools.partial(LBFGS, history_size=20, line_search_fn="strong_wolfe")

# To see whether there is anything to gain, as far as arithmetic goes.
TRIAL = functools.partial(climbing, max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15)


class Optimizer:
    """A torch optimiser with Pyro's gradient clipping and, where the user gave one, its learning-rate schedule.

    Args:
        spec: a ``pyro.optim`` object, or a callable that makes a ``torch.optim.Optimizer`` from parameters, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        leaves: unconstrained leaf tensors by name.

    Raises:
        TypeError: ``spec`` is neither; a ``torch.optim.Optimizer`` *instance* is bound to tensors of another fit.
    """

    def __init__(self, spec: OptimizerSpec, leaves: Mapping[str, Tensor]) -> None:
        self.leaves: Sequence[Tensor] = list(leaves.values())
        self._clip: list[tuple[Tensor, dict[str, float]]] = []
        self._scheduler: Any = None
        if isinstance(spec, PyroOptim):
            self.torch = self._from_pyro(spec, leaves)
        elif callable(spec) and not isinstance(spec, torch.optim.Optimizer):
            self.torch = spec(list(self.leaves))
        else:
            raise TypeError(
                "optim must be a pyro.optim object or a callable that makes a torch optimiser from parameters, such "
                f"as functools.partial(torch.optim.Adam, lr=1e-3); got {type(spec).__name__}."
            )
        self._fuse()

    def _from_pyro(self, spec: PyroOptim, leaves: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        args = spec.pt_optim_args
        optimizer = spec.pt_optim_constructor(_groups(args, leaves), **({} if callable(args) else args))
        if isinstance(spec, PyroLRScheduler):
            self._scheduler = spec.pt_scheduler_constructor(optimizer, **spec.kwargs)
        clips = [(leaf, _per_param(spec.pt_clip_args, name)) for name, leaf in leaves.items()]
        self._clip = [(leaf, clip) for leaf, clip in clips if clip]
        return optimizer

    def _fuse(self) -> None:
        """Choose torch's one-kernel update where the optimiser has one and the user did not say otherwise.

        It is the same update; on small networks it takes a fifth of the time of the loop over tensors.
        """
        if not all(leaf.is_floating_point() and leaf.device.type == "cpu" for leaf in self.leaves):
            return
        for group in self.torch.param_groups:
            if type(self.torch) in FUSED and group["fused"] is None and not group["foreach"]:
                group["fused"] = True

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update once from the gradients in place, or as often as the optimiser calls ``closure``."""
        if closure is None:
            self._clip_gradients()
            self.torch.step()
            return

        def clipped() -> Any:
            loss = closure()
            self._clip_gradients()
            return loss

        self.torch.step(clipped)

    def _clip_gradients(self) -> None:
        for leaf, clip in self._clip:
            if leaf.grad is None:
                continue
            if "clip_norm" in clip:
                torch.nn.utils.clip_grad_norm_(leaf, clip["clip_norm"])
            if "clip_value" in clip:
                torch.nn.utils.clip_grad_value_(leaf, clip["clip_value"])

    def end_epoch(self) -> None:
        """Advance the learning-rate schedule, as Pyro's users do once an epoch."""
        if self._scheduler is not None:
            self._scheduler.step()

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply every learning rate, in place."""
        for group in self.torch.param_groups:
            group["lr"] *= factor

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.torch.zero_grad(set_to_none=True)


def _groups(args: Any, leaves: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    if not callable(args):
        return [{"params": list(leaves.values())}]
    return [{"params": [leaf], **_per_param(args, name)} for name, leaf in leaves.items()]


def _per_param(args: Any, name: str) -> dict[str, Any]:
    """Pyro lets options depend on the parameter's name, or on (module name, parameter name)."""
    if not callable(args):
        return dict(args)
    if len(inspect.signature(args).parameters) == 1:
        return dict(args(name))
    return dict(args(module_from_param_with_module_name(name), user_param_name(name)))
