"""Minibatches: from a ``DataLoader``, or cut from tensors that share their first dimension."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_em.errors import ModelError, StartError
from pyro_em.loaders import check_loader, find_loader, is_plain_loader, reread

__all__ = ["Batch", "Batches", "copied", "dense", "first_rows", "hinting", "is_plain", "open_batches", "whole"]


@dataclass(frozen=True)
class Batch:
    """Arguments for one run of the model, and how many data they hold."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    size: int

    def one_row_more(self) -> Batch:
        """The same batch with its first row repeated at the end."""
        return self._taken(torch.arange(self.size + 1) % self.size)

    def head(self, rows: int) -> Batch:
        """Its first rows."""
        return self._taken(torch.arange(min(rows, self.size)))

    def _taken(self, rows: Tensor) -> Batch:
        args = tuple(_rows(a, rows) if _length(a) == self.size else a for a in self.args)
        kwargs = {k: _rows(v, rows) if _length(v) == self.size else v for k, v in self.kwargs.items()}
        return Batch(args, kwargs, len(rows))


@dataclass(frozen=True)
class Batches:
    """The data of a fit in pieces.

    Attributes:
        args, kwargs: the caller's arguments; a loader among them is replaced by each batch's content.
        total: number of data N.
        batch_size: rows a batch holds at most.
        loader: position of the ``DataLoader`` in ``args``, or ``None``.
        sliced: which arguments are cut, where there is no loader: positions and keywords.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    total: int
    batch_size: int
    loader: int | None
    sliced: frozenset[int | str] = frozenset()

    def epoch(self) -> Iterator[Batch]:
        """The data once, in random order (a loader: in its own order, without the rest that ``drop_last`` leaves out).

        Raises:
            ValueError: a loader that leaves out all of them.
        """
        if self.loader is None:
            yield from self._slices(torch.randperm(self.total))
            return
        loader = self.args[self.loader]
        if not len(loader):
            raise ValueError(
                f"A step needs a batch; the DataLoader has none, as drop_last=True leaves out its {self.total} data, "
                "fewer than its batch_size. Lower that, or take all data by drop_last=False."
            )
        if is_plain_loader(loader):  # index whole tensors instead of collating row by row
            for rows in loader.batch_sampler:
                index = torch.as_tensor(rows)
                yield self._spliced(tuple(t[index] for t in loader.dataset.tensors))
            return
        for content in loader:
            yield self._spliced(content)

    def in_order(self) -> Iterator[Batch]:
        """The data once, every row, in the order of the data set."""
        if self.loader is None:
            yield from self._slices(torch.arange(self.total))
            return
        for content in reread(self.args[self.loader]):
            yield self._spliced(content)

    def whole(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All data as one call's arguments."""
        if self.loader is None:
            return self.args, self.kwargs
        parts = list(self.in_order())
        args = tuple(_concatenated([p.args[i] for p in parts]) for i in range(len(parts[0].args)))
        kwargs = {k: _concatenated([p.kwargs[k] for p in parts]) for k in parts[0].kwargs}
        return args, kwargs

    def _slices(self, order: Tensor) -> Iterator[Batch]:
        for rows in order.split(self.batch_size):
            args = tuple(_rows(a, rows) if i in self.sliced else a for i, a in enumerate(self.args))
            kwargs = {k: _rows(v, rows) if k in self.sliced else v for k, v in self.kwargs.items()}
            yield Batch(args, kwargs, len(rows))

    def _spliced(self, content: Any) -> Batch:
        assert self.loader is not None
        before, after = self.args[: self.loader], self.args[self.loader + 1 :]
        if isinstance(content, dict):
            return Batch((*before, *after), {**self.kwargs, **content}, _rows_in(content.values()))
        parts = tuple(content) if isinstance(content, tuple | list) else (content,)
        return Batch((*before, *parts, *after), self.kwargs, _rows_in(parts))


def open_batches(args: tuple[Any, ...], kwargs: dict[str, Any], batch_size: int | None) -> Batches | None:
    """The data in pieces, or ``None`` where the model is to see all of it at once.

    Raises:
        ValueError: ``batch_size`` beside a loader, or nothing to cut; a loader that shows other data than its own.
    """
    at = find_loader(args)
    if at is not None:
        if batch_size is not None:
            raise ValueError(
                "batch_size= and a DataLoader both set the batch; give batch_size to the DataLoader alone."
            )
        check_loader(args[at])
        total, sampler = len(args[at].dataset), args[at].batch_sampler
        if sampler is None:
            return _counted(Batches(args, kwargs, total, 1, at))
        return Batches(args, kwargs, total, min(sampler.batch_size, total), at)
    if batch_size is None:
        return None
    arrays = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor | np.ndarray) and a.ndim]
    rows = next((_length(a) for a in arrays), 0)
    if not rows:
        raise ValueError("batch_size= cuts tensors along their first dimension; the model's arguments hold no tensor.")
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    sliced: frozenset[int | str] = frozenset(k for k, a in named if _length(a) == rows)
    return Batches(args, kwargs, rows, min(batch_size, rows), None, sliced)


def _counted(batches: Batches) -> Batches:
    """Batches of a data set whose items are whole batches; their rows, which its length does not tell, are counted."""
    sizes = [batch.size for batch in batches.in_order()]
    return replace(batches, total=sum(sizes), batch_size=max(sizes))


def first_rows(args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> Batch | None:
    """The first rows of data too many to look at all of them; ``None`` where there are no more than ``rows``, or no
    tensor among the arguments.
    """
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim()]
    sparse = any(a.layout is torch.sparse_csr for a in tensors)  # of these, the first rows are dense
    if find_loader(args) is not None or not tensors or (len(tensors[0]) <= rows and not sparse):
        return None
    batches = open_batches(args, kwargs, rows)
    return None if batches is None else next(batches.in_order())


def whole(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with a ``DataLoader`` among them, if any, replaced by all its data."""
    batches = open_batches(args, kwargs, None)
    args, kwargs = (args, kwargs) if batches is None else batches.whole()
    return tuple(_in_memory(a) for a in args), {k: _in_memory(a) for k, a in kwargs.items()}


def _in_memory(value: Any) -> Any:
    """A ``numpy.memmap`` as the tensor that a model expects; anything else as it is."""
    return torch.from_numpy(np.array(value)) if isinstance(value, np.memmap) else value


@contextmanager
def hinting(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Where the model fails in the body of the ``with``, note which arguments are arrays where Pyro takes tensors.

    They are not converted: a model may well want them as they are, labels of rows for instance.
    """
    try:
        yield
    except Exception as error:
        is_refusal = isinstance(error, ModelError | StartError) and error.__cause__ is None
        for name, value in () if is_refusal else (*enumerate(args), *kwargs.items()):
            if isinstance(value, np.ndarray | pd.Series | pd.DataFrame):
                kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
                error.add_note(
                    f"Argument {name!r} of the model is a {kind}, and Pyro's distributions take tensors: pass "
                    f"torch.as_tensor({'x' if isinstance(value, np.ndarray) else 'x.to_numpy()'})."
                )
        raise


def dense(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with sparse tensors among them written out."""

    def out(a: Any) -> Any:
        return a.to_dense() if isinstance(a, Tensor) and a.layout is torch.sparse_csr else a

    return tuple(out(a) for a in args), {k: out(a) for k, a in kwargs.items()}


def _length(value: Any) -> int | None:
    """How many rows an argument has: tensors, arrays, lists and tuples, and dictionaries of them."""
    if isinstance(value, dict):
        lengths = {_length(v) for v in value.values()}
        return lengths.pop() if len(lengths) == 1 else None
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list | tuple) else None


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, dict):
        return {k: _rows(v, rows) for k, v in value.items()}
    if isinstance(value, Tensor) and value.layout is torch.sparse_csr:
        return torch.stack([value[int(i)].to_dense() for i in rows])
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, np.memmap):  # its rows come into memory as the tensor that a model expects
        return torch.from_numpy(np.array(value[rows.numpy()]))
    if isinstance(value, np.ndarray):
        return value[rows.numpy()]
    return type(value)(value[i] for i in rows.tolist())


def _rows_in(parts: Any) -> int:
    """Rows of a batch from a loader: the length of its first tensor.

    Raises:
        ValueError: there is none, so the batch's share of the data is unknown.
    """
    for part in parts:
        if isinstance(part, Tensor) and part.dim():
            return len(part)
    raise ValueError("A DataLoader's batch must hold a tensor with one row per datum, which tells the batch's size.")


def _concatenated(parts: list[Any]) -> Any:
    first = parts[0]
    constant = not isinstance(first, Tensor) or not first.dim() or all(p is first for p in parts)
    return first if constant else torch.cat(parts)


def is_plain(value: Any) -> bool:
    """Whether a value is made of tensors, numbers, strings, and containers of them."""
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(isinstance(k, str | int) and is_plain(v) for k, v in value.items())
    return value is None or type(value) in (bool, int, float, str, Tensor)


def copied(value: Any) -> Any:
    """A plain value without what a view of a large tensor would drag along."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return type(value)(map(copied, value)) if isinstance(value, list | tuple) else value
