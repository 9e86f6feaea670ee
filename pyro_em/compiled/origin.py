"""Centres of the data, so that second moments about them do not cancel.

Features are those of x - origin, the same for all states of a datum; so elements of data that are scored by one common
location must have one common origin, and those that are not need not. A location that is a constant has no statistics
of its own, so that there it is enough if the elements of one cell have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyro_em.compiled.cells import Book
from pyro_em.probing import Coordinates, SiteParts
from pyro_em.probing.moments import Moments

__all__ = ["with_origin"]


def with_origin(
    book: Book, sites: Mapping[str, SiteParts], moments: Mapping[str, Moments], coordinates: Coordinates
) -> Book:
    """The book with origins, where its family has a location.

    Args:
        moments: of the sites' data.
    """
    if book.location is None:
        return book
    nodes: dict[str, Tensor] = {}
    centres, links, at = [], [], 0
    scored = _scored(book, coordinates)
    for name, cells in book.maps.items():
        events = sites[name].events
        shape, own = cells.shape[cells.dim() - events :], _events(moments[name], book.family.rank)
        full = torch.Size(max(a, b) for a, b in zip(shape, own, strict=True))
        nodes[name] = torch.arange(at, at := at + full.numel()).reshape(full)
        centres.append(_spread_out(moments[name], full, book.family.rank))
        together = torch.stack(torch.broadcast_tensors(nodes[name], scored[cells]))
        links.append(together.reshape(2, -1).unique(dim=1))
    label = _components(torch.cat(links, 1), at, int(scored.max()) + 1)
    means = _means(torch.cat([m for m, _ in centres]), label[0])
    offsets = torch.cat([m for m, _ in centres]) - means[label[0]]
    variances = _means(torch.cat([v for _, v in centres]) + offsets.square(), label[0])
    variances = variances.maximum((1e-8 * means).square())  # of constant data, what rounding leaves
    origins = {name: means[label[0][node]] for name, node in nodes.items()}
    of_cell = label[1][scored]
    return replace(book, origin=means[of_cell], variance=variances[of_cell], origins=origins)


def _scored(book: Book, coordinates: Coordinates) -> Tensor:
    """By cell, what its elements must have a common origin with: all of one location, or the cell alone."""
    assert book.location is not None
    rows, groups = book.rows[book.location], book.groups[book.location]
    is_constant = (rows.reshape(len(rows), -1) >= len(coordinates.owner())).all(1)
    return torch.where(is_constant[groups], len(rows) + torch.arange(len(groups)), groups)


def _events(moments: Moments, rank: int) -> torch.Size:
    return moments.mean.shape[: moments.mean.dim() - rank]


def _spread_out(moments: Moments, full: torch.Size, rank: int) -> tuple[Tensor, Tensor]:
    """Means and variances, shape (number of event elements, *event)."""
    block = moments.mean.shape[moments.mean.dim() - rank :]
    both = (moments.mean, moments.squares / moments.count.clamp_min(1))
    flat = [t.expand([*full, *block]).reshape([full.numel(), *block]) for t in both]
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
