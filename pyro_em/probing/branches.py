"""Parameters that a model compares, sorts or turns into numbers: it may do otherwise where they have other values.

``torch.where(scale > floor, scale, floor)`` and ``if scale > floor`` leave no mark in the graph of differentiable
operations, and at most parameter values none in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_em.probing.smooth import trail

__all__ = ["Branches"]

DECIDING = frozenset(
    """gt ge lt le eq ne greater greater_equal less less_equal not_equal isclose allclose equal argmax argmin argsort
    topk searchsorted bucketize sign signbit nonzero item tolist numpy __gt__ __ge__ __lt__ __le__ __eq__ __ne__
    __bool__ __float__ __int__ __index__ heaviside isfinite isnan""".split()  # noqa: SIM905
)


class Branches(TorchFunctionMode):
    """Notes the parameters behind every tensor that the body compares.

    Args:
        leaves: by name.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.leaves, self.compared = leaves, set[str]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function as it is."""
        kwargs = kwargs or {}
        if _decides(func):
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor) and value.requires_grad:
                    self.compared.update(trail(value, self.leaves).params)
        return func(*args, **kwargs)


@lru_cache(maxsize=1024)
def _decides(func: Callable[..., Any]) -> bool:
    return getattr(func, "__name__", "") in DECIDING
