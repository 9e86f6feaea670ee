"""The stream of batches over epochs, and which plates a batch fills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pyro_em.data import Batch, Batches
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, survey
from pyro_em.graph.trace import Model

__all__ = ["Feed", "batch_plates", "feed"]


@dataclass(frozen=True)
class Feed:
    """One step's batch (``None``: all data), and whether it ends an epoch or the run."""

    batch: Batch | None
    ends_epoch: bool
    ends_run: bool


def feed(batches: Batches | None, max_epochs: int | None) -> Iterator[Feed]:
    """Batches for ``max_epochs`` epochs, or without end."""
    epoch = 0
    while max_epochs is None or epoch < max_epochs:
        epoch += 1
        last = epoch == max_epochs
        if batches is None:
            yield Feed(None, True, last)
            continue
        held: Batch | None = None
        for batch in batches.epoch():
            if held is not None:
                yield Feed(held, False, False)
            held = batch
        yield Feed(held, True, last)


def batch_plates(model: Model, batch: Batch) -> frozenset[str]:
    """Plates whose size follows the batch, found by running the model on one row more.

    Plates that Pyro scales itself (``subsample_size`` or ``subsample`` in the model) are not among them.

    Raises:
        ModelError: no plate follows the batch, so nothing tells the data apart from what they share.
    """
    longer = batch.one_row_more()
    sizes = [_plate_sizes(model, b) for b in (batch, longer)]
    following = [n for n, (size, _) in sizes[0].items() if n in sizes[1] and sizes[1][n][0] != size]
    if not following:
        raise ModelError(
            "Minibatches need a plate over the data, so that its sites can be scaled to all of them; no plate of the "
            "model changes its size with the batch. Write `with pyro.plate('data', len(x)):`."
        )
    return frozenset(n for n in following if sizes[0][n][0] == sizes[0][n][1])


def _plate_sizes(model: Model, batch: Batch) -> dict[str, tuple[int, int]]:
    seen = survey(model, batch.args, batch.kwargs, Intervention())
    frames = [f for s in seen.trace.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"]]
    return {f.name: (int(f.size), int(f.full_size or f.size)) for f in frames}
