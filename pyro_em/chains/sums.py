"""Compensated sums, for the compiled passes."""

from __future__ import annotations

from numba import njit

__all__ = ["add"]


@njit(cache=True, nogil=True)
def add(total: float, rest: float, term: float) -> tuple[float, float]:
    """total + term, and what rounding has taken off all such sums so far (Neumaier 1974).

    One constant added a hundred thousand times is rounded the same way each time: without this the log evidence of a
    long chain is known to a millionth of a nat only, and a converged fit seems to fall.
    """
    new = total + term
    lost = (total - new) + term if abs(total) >= abs(term) else (term - new) + total
    return new, rest + lost
