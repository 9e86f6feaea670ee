"""Where EM may start, on any model: random points, or the M-step of a first guess at the latents."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod
from typing import Protocol

import torch
from torch import Tensor

from pyro_em.checked import check_count
from pyro_em.em.engine import Engine
from pyro_em.errors import ModelError

__all__ = ["KMeans", "RandomDraws", "RandomResponsibilities", "Start"]

REST = 0.01  # weight of a row without a label, in every state alike


class Start(Protocol):
    """Moves an engine from the model's own initial values to another point."""

    def place(self, engine: Engine) -> None:
        """Draw from the fit's random stream and move the parameters."""
        ...


@dataclass(frozen=True)
class RandomDraws:
    """The model's own initial values, moved by normal noise in unconstrained coordinates.

    For models whose parameters live on a scale near one, and for those whose latents a first guess cannot label.

    Args:
        scale: standard deviation of the noise.
    """

    scale: float = 1.0

    def place(self, engine: Engine) -> None:
        point = engine.coordinates()
        engine.move_to(point + self.scale * torch.randn_like(point))


@dataclass(frozen=True)
class RandomResponsibilities:
    """The M-step of latents labelled at random, on a few rows drawn at random.

    On few rows the labels make components that differ, where on all rows each would be the average of the data. It
    knows the scale of the data, and needs no more than the model. Where the few rows leave others impossible (words
    that they do not hold), those count a little, in all states alike.

    Args:
        rows: how many rows of each latent's plate are labelled for each state; ``None`` takes five, or as many as the
            model's largest covariance needs.
    """

    rows: int | None = None

    def __post_init__(self) -> None:
        check_count("rows", self.rows, optional=True)

    def place(self, engine: Engine) -> None:
        states, chosen = {}, {}
        variables = engine.variables()
        alone = [v for v in variables if not v.plates]  # a long series: few of its times are labelled
        left = len(alone) - (self._each(engine) * max((v.size for v in alone), default=0))
        unlabelled = {alone[i].name for i in torch.randperm(len(alone))[: max(left, 0)].tolist()}
        for variable in (v for v in variables if v.name not in unlabelled):
            states[variable.name] = torch.randint(variable.size, [p.size for p in variable.plates])
            for plate in variable.plates[:1]:  # one choice for all latents of a plate: a label alone says little
                if plate.name not in chosen:
                    chosen[plate.name] = _few(plate.size, self._each(engine) * variable.size)
        before = engine.point()
        engine.place(states, chosen)
        if not isfinite(engine.expect().objective):  # what the few rows never show is impossible in other rows
            engine.move(before)
            engine.place(states, chosen, REST)

    def _each(self, engine: Engine) -> int:
        return self.rows or max(5, 2 * (engine.block_size() + 1))


def _few(total: int, rows: int) -> Tensor:
    """Which elements of a plate are labelled."""
    few = torch.zeros(total, dtype=torch.bool)
    few[torch.randperm(total)[:rows]] = True
    return few


@dataclass(frozen=True)
class KMeans:
    """The M-step of labels from k-means++ seeds among the data of one observed site; other latents at random.

    For mixtures of continuous data. Needs scikit-learn.

    Args:
        site: the observed site, whose one latent is labelled; in a chain, with its like at all other times.
    """

    site: str

    def place(self, engine: Engine) -> None:
        variables, data = engine.observed(self.site)
        states = {v.name: torch.randint(v.size, [p.size for p in v.plates]) for v in engine.variables()}
        shape = [*(p.size for p in variables[0].plates), len(variables)]
        labels = _nearest(data.reshape(prod(shape), -1), variables[0].size).reshape(shape)
        states.update({v.name: labels[..., t] for t, v in enumerate(variables)})
        engine.place(states, {})


def _nearest(rows: Tensor, count: int) -> Tensor:
    """For each row, the nearest of ``count`` seeds."""
    try:
        from sklearn.cluster import kmeans_plusplus
    except ImportError as error:
        raise ModelError("KMeans starts need scikit-learn: pip install scikit-learn.") from error
    rows = rows.to(torch.float64).nan_to_num(0.0)
    rows = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-12)
    seed = int(torch.randint(2**31 - 1, ()))
    centres, _ = kmeans_plusplus(rows.numpy(), min(count, len(rows)), random_state=seed)
    return torch.cdist(rows, torch.as_tensor(centres)).argmin(1)
