"""What is to be fitted: the model, the arguments it is run on, and the parameters it turns out to have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from pyro_em.params import ParamSpace

__all__ = ["Problem"]

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A model and its arguments, in the parameter space of one fit.

    Attributes:
        model: the user's Pyro program, unchanged.
        args: positional arguments; one of them may be a ``torch.utils.data.DataLoader``.
        kwargs: keyword arguments.
        space: the parameters; active while the fit runs.
        weights: how often each datum counts: one for each element of the outermost data plate, or by plate.
        attempt: which start this is; ``None`` goes on from the values that :attr:`start` puts in place.
        kept: what a strategy keeps from one start of the fit for the next ones.
        start: called by the strategy once the model's parameters are known, to put the caller's ``init`` in place.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    space: ParamSpace
    start: Callable[[], None] = field(default=lambda: None)
    attempt: int | None = 0
    weights: Mapping[str, Tensor] | Tensor | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def first_run(self, run: Callable[[], T]) -> T:
        """Run the model for the first time; where its own initial values are what breaks it, name the parameter.

        Raises:
            StartError: a parameter starts on the boundary of its constraint, or is not finite.
        """
        try:
            return run()
        except ValueError:
            self.space.check_start()
            raise
