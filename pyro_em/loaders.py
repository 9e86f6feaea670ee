"""What a ``DataLoader`` among the arguments shows: every datum of its data set once an epoch, or it is refused."""

from __future__ import annotations

from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

__all__ = ["check_loader", "find_loader", "is_plain_loader", "reread"]


def find_loader(args: tuple[Any, ...]) -> int | None:
    """Position of the ``DataLoader`` among the arguments.

    Raises:
        ValueError: there are several.
    """
    found = [i for i, a in enumerate(args) if isinstance(a, DataLoader)]
    if len(found) > 1:
        raise ValueError(f"One positional argument may be a DataLoader; got {len(found)}. Zip the data sets into one.")
    return found[0] if found else None


def check_loader(loader: DataLoader[Any]) -> None:
    """Refuse a loader that shows other data than its data set holds: N and the objective are those of the data set.

    Raises:
        ValueError: a data set without a length or without data; a sampler that leaves data out or repeats them.
    """
    if not hasattr(loader.dataset, "__len__"):
        raise ValueError("A DataLoader must know how many data it has; an IterableDataset has no length.")
    count = len(loader.dataset)
    if not count:
        raise ValueError("A DataLoader must have data to fit; its data set has length 0.")
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else getattr(batches, "sampler", None)
    whole = batches is None or type(batches) is BatchSampler
    if whole and _shows_all(sampler, count):
        return
    own = type(sampler if whole else batches).__name__
    raise ValueError(
        f"A DataLoader must show each of its {count} data once an epoch, in order or shuffled, since a fit is of its "
        f"whole data set; a sampler of its own, here {own}, shows other data than that. Cut the data set instead: "
        "DataLoader(torch.utils.data.Subset(ds, rows)). Under EM, how often a datum counts is said by weights=."
    )


def _shows_all(sampler: Any, count: int) -> bool:
    # subclasses may draw as they like, so only torch's own count
    known = type(sampler) in (SequentialSampler, RandomSampler)
    return known and len(sampler) == count and not getattr(sampler, "replacement", False)


def reread(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of every datum in the order of the data set, those that ``drop_last`` leaves out included."""
    size = getattr(loader.batch_sampler, "batch_size", None)
    return DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn)


def is_plain_loader(loader: DataLoader[Any]) -> bool:
    """Whether batches are rows of tensors in memory, which can be cut without the loader."""
    return (
        type(loader.dataset) is TensorDataset
        and loader.collate_fn is default_collate
        and type(loader.batch_sampler) is BatchSampler
        and loader.num_workers == 0
        and not loader.pin_memory
    )
