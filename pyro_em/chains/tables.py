"""Chains of discrete latents as tables of log-potentials, and what the two passes make of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

__all__ = ["ChainTables", "Filtered", "Smoothed", "as_array"]


@dataclass(frozen=True, eq=False)
class ChainTables:
    """R independent chains of T discrete variables with S states each.

        log potential of a path z = sum_t emission[r, t, z_t] + sum_t transition[g, which[t], z_t, z_{t+1}]

    Args:
        emission: shape (R, T, S), float64: log-potential of each state in each frame, finite or -inf. What belongs to
            the first state alone, such as its prior, is added to frame 0.
        transition: shape (G, M, S, S), float64, [from, to]: finite or -inf. Row r reads group r // (R // G).
        which: shape (T - 1,), int64, in [0, M): which matrix leads from frame t to t + 1.
        lengths: shape (R,), int64, in [0, T]: only so many first frames of a row count; None: all.

    Raises:
        TypeError: a tensor has another dtype, or another device than `emission`.
        ValueError: a shape, an index or a length does not fit.
    """

    emission: Tensor
    transition: Tensor
    which: Tensor
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.emission.dim() != 3 or not self.emission.numel():
            raise _misfit("emission", "shape (R, T, S), none of them zero", self.emission)
        rows, frames, states = self.emission.shape
        if (
            self.transition.dim() != 4
            or self.transition.shape[2:] != (states, states)
            or not self.transition.numel()
            or rows % self.transition.shape[0]
        ):
            wanted = f"shape (G, M, {states}, {states}) where G divides {rows} and M is at least 1"
            raise _misfit("transition", wanted, self.transition)
        if self.which.shape != (frames - 1,):
            raise _misfit("which", f"shape ({frames - 1},)", self.which)
        _check_range("which", self.which, self.transition.shape[1] - 1)
        if self.lengths is not None:
            if self.lengths.shape != (rows,):
                raise _misfit("lengths", f"shape ({rows},)", self.lengths)
            _check_range("lengths", self.lengths, frames)

    def _check_types(self) -> None:
        wanted = {"emission": torch.float64, "transition": torch.float64, "which": torch.int64, "lengths": torch.int64}
        for name, dtype in wanted.items():
            value = getattr(self, name)
            if value is None and name == "lengths":
                continue
            if value.dtype != dtype or value.device != self.emission.device:
                raise TypeError(
                    f"Chains need {name} as {dtype} on {self.emission.device}, not {value.dtype} on {value.device}. "
                    f"Convert it with .to({str(dtype)!r})."
                )

    @property
    def rows_per_group(self) -> int:
        """How many rows share one group of matrices, R / G."""
        return self.emission.shape[0] // self.transition.shape[0]

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`emission`, `transition`, `which` and the lengths of all rows, as the compiled passes take them."""
        emission, transition = as_array(self.emission), as_array(self.transition)
        return emission, transition, as_array(self.which), as_array(self.row_lengths())

    def row_lengths(self) -> Tensor:
        """`lengths`, or T for every row; shape (R,)."""
        if self.lengths is not None:
            return self.lengths
        rows, frames, _ = self.emission.shape
        return torch.full((rows,), frames, dtype=torch.int64, device=self.emission.device)


@dataclass(frozen=True, eq=False)
class Filtered:
    """What the forward pass leaves.

    Attributes:
        tables: the chains.
        log_evidence: shape (R,): log of the sum over all paths; -inf where no path is possible.
        alpha: shape (R, T, S): p(z_t | frames 0..t), a distribution over S; zero beyond `lengths` and from the frame on
            where a row becomes impossible.
        ratio: shape (R, T, S): p(x_t | z_t) / p(x_t | frames 0..t-1); on the CPU and outside `log_rows` only.
        steps: shape (G, M, S, S): exp(transition) over the largest entry of each matrix; on the CPU only.
        log_rows: shape (L,): the rows whose `alpha` may have lost states that matter later.
        log_alpha: shape (L, T, S): logarithm of `alpha` in those rows, without loss.
    """

    tables: ChainTables
    log_evidence: Tensor
    alpha: Tensor
    ratio: Tensor
    steps: Tensor
    log_rows: Tensor
    log_alpha: Tensor


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The posterior that the backward pass makes of a filtered chain.

    Attributes:
        marginal: shape (R, T, S): p(z_t | all frames) times the row's weight; zero beyond `lengths` and in rows that
            are impossible.
        pairwise: shape (G, M, S, S): p(z_t, z_{t+1} | all frames) times the row's weight, summed over the rows of each
            group and the frames that use each matrix.
    """

    marginal: Tensor
    pairwise: Tensor


def as_array(tensor: Tensor) -> np.ndarray:
    """The same numbers without gradients, row by row in memory."""
    return tensor.detach().contiguous().numpy()


def _misfit(name: str, wanted: str, value: Tensor) -> ValueError:
    return ValueError(f"Chains need {name} of {wanted}, not {tuple(value.shape)}. Reshape or expand it.")


def _check_range(name: str, values: Tensor, most: int) -> None:
    """The compiled passes index memory by these numbers, unchecked."""
    if values.numel():
        low, high = (int(x) for x in values.aminmax())
        if low < 0 or high > most:
            raise ValueError(f"Chains need {name} in 0..{most}, not in {low}..{high}. Check how {name} was counted.")
