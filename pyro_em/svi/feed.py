"""The stream of batches over epochs, and which plates a batch fills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pyro_em.data import Batch, Batches
from pyro_em.errors import ModelError
from pyro_em.graph import Intervention, survey
from pyro_em.graph.trace import Model, Site, is_latent, run

__all__ = ["Feed", "batch_plates", "check_guide_follows", "feed"]


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


def check_guide_follows(guide: Model, batch: Batch, plates: frozenset[str]) -> None:
    """Refuse a guide that keeps one value per row of a batch: the next batch would inherit those of other data.

    Raises:
        ModelError: the guide does not run on a batch of another size, or its sites keep the old one.
    """
    longer = batch.one_row_more()
    try:
        drawn = run(guide, longer.args, longer.kwargs, Intervention())
        kept = [n for n, s in drawn.nodes.items() if is_latent(s) and _keeps_size(s, plates, longer.size)]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(f"{_LOCAL} On a batch with one row more it failed: {error}") from error
    if kept:
        raise ModelError(f"{_LOCAL} Its sites {kept} do not follow the batch.")


_LOCAL = (
    "The guide keeps one value per row of the batch, so other data would inherit it in the next. Write an amortised "
    "guide that computes its sites from the batch, or fit all data at once."
)


def _keeps_size(site: Site, plates: frozenset[str], size: int) -> bool:
    inside = [f for f in site["cond_indep_stack"] if f.name in plates and f.vectorized]
    return any(site["value"].shape[f.dim - site["fn"].event_dim] != size for f in inside)


def _plate_sizes(model: Model, batch: Batch) -> dict[str, tuple[int, int]]:
    seen = survey(model, batch.args, batch.kwargs, Intervention())
    frames = [f for s in seen.trace.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"]]
    return {f.name: (int(f.size), int(f.full_size or f.size)) for f in frames}
