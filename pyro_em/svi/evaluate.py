"""Numbers over all data, whatever the batch.

A batch of b of N data, its sites scaled by N / b, estimates the whole objective; weighting each batch's estimate by b
/ N and adding up gives it exactly, terms that the data share included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyro_em.data import Batch, Batches
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, Program, log_evidence, survey
from pyro_em.svi.objective import Objective

__all__ = ["Data", "bound_over_all", "exact_evidence"]

Arguments = tuple[tuple[Any, ...], dict[str, Any], dict[str, float]]


@dataclass(frozen=True)
class Data:
    """A fit's data, whole or in batches.

    Attributes:
        batch_plates: the plates that batches fill.
        all_inside: whether every site lies in one of them. Then the whole bound is scaled by N / b, which is the same
            as scaling each site and spares a handler around every statement of model and guide.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batches: Batches | None
    batch_plates: frozenset[str]
    all_inside: bool = False

    def arguments(self, batch: Batch | None) -> Arguments:
        """What the model is called with, and how its batch plates are scaled."""
        if batch is None or self.batches is None:
            return self.args, self.kwargs, {}
        factor = self.batches.total / batch.size
        scales = {} if factor == 1.0 or self.all_inside else dict.fromkeys(self.batch_plates, factor)
        return batch.args, batch.kwargs, scales

    def multiplier(self, batch: Batch | None) -> float:
        """What the bound of a batch is multiplied by, where its sites are not scaled one by one."""
        if batch is None or self.batches is None or not self.all_inside:
            return 1.0
        return self.batches.total / batch.size

    def vote(self, batch: Batch | None) -> float:
        """What a batch's gradient counts for: less for a short last batch, so that every datum pulls alike.

        Scaled to all data, five rows left over would otherwise steer the parameters as much as a full batch does.
        """
        return 1.0 if batch is None or self.batches is None else min(batch.size / self.batches.batch_size, 1.0)

    def in_order(self) -> Iterator[tuple[Arguments, float]]:
        """All data once, each batch with what its value counts for: its share b / N, and its multiplier."""
        if self.batches is None:
            yield self.arguments(None), 1.0
            return
        for batch in self.batches.in_order():
            yield self.arguments(batch), self.multiplier(batch) * batch.size / self.batches.total

    def total(self, estimate: Callable[..., float]) -> float:
        """The value over all data of an estimate that is exact in expectation over batches."""
        return sum(share * estimate(*arguments) for arguments, share in self.in_order())


def bound_over_all(bound: Objective, data: Data) -> float:
    """The bound at the present parameters; where all data are seen at once, averaged over draws of the guide."""
    draws = NUM_DRAWS if data.batches is None else 1
    return sum(data.total(bound.value) for _ in range(draws)) / draws


NUM_DRAWS = 32


def exact_evidence(program: Program, data: Data) -> float | None:
    """log p(x; params), or ``None`` where some latent cannot be summed out, or a plate leaves data out."""

    def of_batch(args: tuple[Any, ...], kwargs: dict[str, Any], scales: dict[str, float]) -> float:
        return float(log_evidence(program.graph(args, kwargs, Intervention(scales=scales))))

    (args, kwargs, _), _ = next(data.in_order())
    seen = survey(program.model, args, kwargs, Intervention())
    if seen.others or seen.subsampled:
        return None
    try:
        with torch.no_grad():
            return data.total(of_batch)
    except ModelError:  # too many states at once, or shared by all batches: there is no exact value to report
        return None
