"""Centres of the data, so that second moments about them do not cancel.

Features are those of x - origin, the same for all states of a datum; so elements of data that are scored by one common
location must have one common origin, and those that are not need not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
from pyro_em.probing import SiteParts

__all__ = ["with_origin"]

SAMPLE = 4096  # rows that a mean is taken over: any value among the data will do


def with_origin(book: Book, sites: Mapping[str, SiteParts]) -> Book:
    """The book with origins, where its family has a location."""
    if book.location is None:
        return book
    nodes: dict[str, Tensor] = {}
    centres, links, at = [], [], 0
    for name, cells in book.maps.items():
        parts = sites[name]
        shape = cells.shape[cells.dim() - parts.events :]
        full = torch.Size(max(a, b) for a, b in zip(shape, _event_shape(parts), strict=True))
        nodes[name] = torch.arange(at, at := at + full.numel()).reshape(full)
        centres.append(_moments(parts, full, book.family.rank))
        groups = book.groups[book.location][cells]
        links.append(torch.stack(torch.broadcast_tensors(nodes[name], groups)).reshape(2, -1).unique(dim=1))
    label = _components(torch.cat(links, 1), at, len(book.rows[book.location]))
    means = _means(torch.cat([m for m, _ in centres]), label[0])
    offsets = torch.cat([m for m, _ in centres]) - means[label[0]]
    variances = _means(torch.cat([v for _, v in centres]) + offsets.square(), label[0])
    variances = variances.maximum((1e-8 * means).square())  # of constant data, what rounding leaves
    origins = {name: means[label[0][node]] for name, node in nodes.items()}
    of_cell = label[1][book.groups[book.location]]
    return replace(book, origin=means[of_cell], variance=variances[of_cell], origins=origins)


def _event_shape(parts: SiteParts) -> torch.Size:
    end = parts.data.dim() - parts.family.rank
    return parts.data.shape[end - parts.events : end]


def _moments(parts: SiteParts, full: torch.Size, rank: int) -> tuple[Tensor, Tensor]:
    """Means and variances of the data over all but the event axes, shape (number of event elements, *event)."""
    data = parts.data
    for axis in range(len(parts.dims)):
        step = max(1, data.shape[axis] // SAMPLE)
        data = data[(slice(None),) * axis + (slice(None, None, step),)]
    data = data.to(torch.float64)
    axes = list(range(len(parts.dims)))
    mean = data.nanmean(axes, keepdim=True)
    square = (data - mean).square().nanmean(axes)
    mean = mean.reshape(square.shape)
    shape = [*full, *mean.shape[mean.dim() - rank :]]
    both = (torch.where(torch.isfinite(t), t, 0.0).expand(shape) for t in (mean, square))
    flat = [t.reshape([full.numel(), *shape[len(full) :]]) for t in both]
    return flat[0], flat[1]


def _components(links: Tensor, nodes: int, groups: int) -> tuple[Tensor, Tensor]:
    """Connected components of elements and locations: a label for each element and for each location."""
    of_node, of_group = torch.arange(nodes), torch.full((groups,), nodes)
    while True:
        of_group = of_group.scatter_reduce(0, links[1], of_node[links[0]], "amin")
        lower = of_node.scatter_reduce(0, links[0], of_group[links[1]], "amin")
        if torch.equal(lower, of_node):
            return of_node, of_group
        of_node = lower


def _means(values: Tensor, label: Tensor) -> Tensor:
    """Means of the values with each label, at the label's position."""
    total = torch.zeros_like(values).index_add_(0, label, values)
    count = torch.zeros(len(values), dtype=values.dtype).index_add_(
        0, label, torch.ones_like(label, dtype=values.dtype)
    )
    return total / count.clamp_min(1).reshape(-1, *[1] * (values.dim() - 1))
