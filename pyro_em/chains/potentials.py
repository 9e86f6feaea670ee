"""Log-potentials as scaled potentials, compiled to vector instructions.

No flag here lets the compiler assume that numbers are finite; `contract` joins a product and a sum into one rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = [
    "LOG2_HIGH",
    "LOG2_LOW",
    "TINY",
    "Array",
    "bits_of",
    "exponentiate",
    "from_bits",
    "scale_emissions",
    "scale_transitions",
]

Array = NDArray[Any]

# 1e-308 / DENSE is what an underflow loses after a frame that surprises; over DENSE again, of what may yet come.
DENSE = 1e-120
# Far enough from 1e-308 that sums over time of its reciprocal stay finite.
TINY = 1e-260
# Frames whose exponentials are taken at once, while they are in the cache.
BLOCK = 64
# Adding this to a number below 2^51 leaves the nearest integer in the last bits of the sum.
ROUND = 1.5 * 2.0**52
# log(2) in two parts: the first has few enough digits that its product with an integer is exact (Cody and Waite 1980).
LOG2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LOG2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
# Below this the result would not be a normal number.
SMALLEST = -708.0
C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = (1.0 / math.factorial(n) for n in range(2, 14))


@intrinsic
def bits_of(context: Any, x: Any) -> Any:
    """The 64 bits of a float as an integer."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], target.get_value_type(types.int64))

    return types.int64(types.float64), build


@intrinsic
def from_bits(context: Any, x: Any) -> Any:
    """The float that these 64 bits are."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], target.get_value_type(types.float64))

    return types.float64(types.int64), build


@njit(cache=True, nogil=True, fastmath={"contract"})
def exponentiate(x: Array) -> None:
    """Replace every x <= 0 of a vector by exp(x), within one unit in the last place; zero below -708, NaN stays NaN.

    exp(x) = 2^n exp(r) with n the integer nearest to x / log 2, and the Taylor series of exp(r) up to r^13: its rest is
    below 5e-18 for |r| <= log(2) / 2.
    """
    for i in range(x.size):
        y = x[i]
        shifted = y * 1.4426950408889634 + ROUND
        n = shifted - ROUND
        r = (y - n * LOG2_HIGH) - n * LOG2_LOW
        p = C13
        p = p * r + C12
        p = p * r + C11
        p = p * r + C10
        p = p * r + C9
        p = p * r + C8
        p = p * r + C7
        p = p * r + C6
        p = p * r + C5
        p = p * r + C4
        p = p * r + C3
        p = p * r + C2
        p = p * (r * r) + r + 1.0
        x[i] = 0.0 if y < SMALLEST else p * from_bits((bits_of(shifted) << 52) + 0x3FF0000000000000)


@njit(cache=True, nogil=True)
def _scale_block(emission: Array, ratio: Array) -> float:
    """ratio = exp(emission - top), top the largest of each frame; returns the sum of tops."""
    tops = 0.0
    for t in range(emission.shape[0]):
        top = -np.inf
        for j in range(emission.shape[1]):
            top = max(top, emission[t, j])
        # A frame in which every state is impossible stays so.
        top = 0.0 if top == -np.inf else top
        tops += top
        for j in range(emission.shape[1]):
            ratio[t, j] = emission[t, j] - top
    exponentiate(ratio.reshape(-1))
    return tops


@njit(cache=True, nogil=True)
def _add(total: float, rest: float, term: float) -> tuple[float, float]:
    """total + term, and what rounding has taken off all such sums so far (Neumaier 1974)."""
    new = total + term
    lost = (total - new) + term if abs(total) >= abs(term) else (term - new) + total
    return new, rest + lost


@njit(cache=True, nogil=True)
def scale_emissions(first: int, last: int, emission: Array, lengths: Array, ratio: Array, evidence: Array) -> None:
    """Fill ratio (R, T, S) with exp(emission) over the largest of each frame in the rows first..last - 1.

    evidence (R,) becomes the sum of the logarithms of these scales. Beyond the length of a row nothing is written.
    """
    for r in range(first, last):
        total, rest = 0.0, 0.0
        for start in range(0, lengths[r], BLOCK):
            end = min(start + BLOCK, lengths[r])
            total, rest = _add(total, rest, _scale_block(emission[r, start:end], ratio[r, start:end]))
        evidence[r] = total + rest


@njit(cache=True, nogil=True)
def scale_transitions(transition: Array, steps: Array, shift: Array, floor: Array) -> None:
    """Fill `steps` (G, M, S, S) with exp(transition - shift), where shift (G, M) is each largest entry.

    `floor` (G,) is zero if no loss can matter, else what a reachable state must not fall below; infinite if a
    transition itself underflows.
    """
    groups, matrices, states, _ = transition.shape
    for g in range(groups):
        least, positive, lost = 1.0, 1.0, False
        for m in range(matrices):
            a = transition[g, m]
            top = a.max()
            # max() is NaN where an entry is, and so is all that follows; -inf alone needs a stand-in.
            shift[g, m] = 0.0 if top == -np.inf else top
            for i in range(states):
                for j in range(states):
                    x = math.exp(a[i, j] - shift[g, m])
                    steps[g, m, i, j] = x
                    least = min(least, x)
                    if x > 0.0:
                        positive = min(positive, x)
                    elif a[i, j] > -np.inf:
                        lost = True
        if lost or positive < TINY:
            floor[g] = np.inf
        else:
            floor[g] = 0.0 if least > DENSE else TINY / positive
