"""Exponentials, logarithms and products in a form that compiles to vector instructions.

No flag here lets the compiler assume that numbers are finite; `contract` joins a product and a sum into one rounding.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["Array", "add_outer", "exponentiate", "logarithm", "multiply"]

Array = NDArray[Any]

# Adding this to a number below 2^51 leaves the nearest integer in the last bits of the sum.
ROUND = 1.5 * 2.0**52
# log(2) in two parts: the first has few enough digits that its product with an integer is exact (Cody and Waite 1980).
LOG2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LOG2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
# Below this the result would not be a normal number.
SMALLEST = -708.0
C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = (1.0 / math.factorial(n) for n in range(2, 14))

D3, D5, D7, D9, D11, D13, D15, D17, D19, D21 = (2.0 / n for n in range(3, 22, 2))
ROOT_HALF = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)


@intrinsic
def _bits(context: Any, x: Any) -> Any:
    """The 64 bits of a float as an integer."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], target.get_value_type(types.int64))

    return types.int64(types.float64), build


@intrinsic
def _from_bits(context: Any, x: Any) -> Any:
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
        x[i] = 0.0 if y < SMALLEST else p * _from_bits((_bits(shifted) << 52) + 0x3FF0000000000000)


# The error model of numpy: a check of every division would make the loop a scalar one.
@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def logarithm(x: Array) -> None:
    """Replace every x >= 1 of a vector by log(x), within two units in the last place; infinity and NaN stay.

    log(x) = n log 2 + log(m) with m in [sqrt(1/2), sqrt(2)), and log(m) = 2 artanh(s), s = (m - 1) / (m + 1), by its
    series to s^21: the rest is below 3e-18 for |s| <= 0.172.
    """
    for i in range(x.size):
        y = x[i]
        bits = _bits(y)
        n = (bits - ROOT_HALF) >> 52
        m = _from_bits(bits - (n << 52))
        # Adding n to the last bits of 2^52 makes a float of it where processors cannot convert many at a time.
        exponent = _from_bits(n + 0x4330000000000000) - 2.0**52
        s = (m - 1.0) / (m + 1.0)
        q = s * s
        p = D21
        p = p * q + D19
        p = p * q + D17
        p = p * q + D15
        p = p * q + D13
        p = p * q + D11
        p = p * q + D9
        p = p * q + D7
        p = p * q + D5
        p = p * q + D3
        p = 2.0 * s + s * (p * q)
        x[i] = exponent * LOG2_HIGH + (p + exponent * LOG2_LOW) if y < math.inf else y


@njit(cache=True, nogil=True, fastmath={"contract"})
def multiply(x: Array, matrix: Array, out: Array) -> None:
    """out = x @ matrix, eight rows of the matrix at a time: `out` is read and written once for all of them."""
    rows, columns = matrix.shape
    # What is left over comes first: there are no sums yet to be read.
    i = rows % 8
    for j in range(columns):
        total = 0.0
        for k in range(i):
            total += x[k] * matrix[k, j]
        out[j] = total
    while i < rows:
        a0, a1, a2, a3, a4, a5, a6, a7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(columns):
            low = (a0 * matrix[i, j] + a1 * matrix[i + 1, j]) + (a2 * matrix[i + 2, j] + a3 * matrix[i + 3, j])
            high = (a4 * matrix[i + 4, j] + a5 * matrix[i + 5, j]) + (a6 * matrix[i + 6, j] + a7 * matrix[i + 7, j])
            out[j] += low + high
        i += 8


@njit(cache=True, nogil=True, fastmath={"contract"})
def add_outer(x: Array, y: Array, out: Array) -> None:
    """out += x^T y for up to eight rows of x and as many of y; eight are added in one pass over `out`."""
    rows = x.shape[0]
    for i in range(out.shape[0]):
        if rows == 8:
            a0, a1, a2, a3, a4, a5, a6, a7 = x[0, i], x[1, i], x[2, i], x[3, i], x[4, i], x[5, i], x[6, i], x[7, i]
            for j in range(out.shape[1]):
                low = (a0 * y[0, j] + a1 * y[1, j]) + (a2 * y[2, j] + a3 * y[3, j])
                high = (a4 * y[4, j] + a5 * y[5, j]) + (a6 * y[6, j] + a7 * y[7, j])
                out[i, j] += low + high
        else:
            for k in range(rows):
                a0 = x[k, i]
                for j in range(out.shape[1]):
                    out[i, j] += a0 * y[k, j]
