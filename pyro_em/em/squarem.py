"""SQUAREM: squared extrapolation of EM.

Two EM maps give r = u1 - u0 and v = (u2 - u1) - r in unconstrained coordinates; the point u0 - 2 a r + a^2 v with
a = -|r| / |v| lies further along the path EM is on (Varadhan & Roland 2008, "Simple and globally convergent methods for
accelerating the convergence of any EM algorithm", scheme S3).

The coordinate of a probability that goes to zero moves for ever, by as much in each step. It would rule the two norms,
and have all others leap too far: next to an edge, the norms are of the parameters as they are.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pyro_em.em.engine import Engine

__all__ = ["squarem"]


def squarem(engine: Engine, expectation: Any) -> tuple[Any, int]:
    """One cycle from the engine's point, in place; the E-step where it ends, and the number of E-steps made.

    The objective never ends lower than after the first of the two maps.
    """
    start, before = engine.coordinates(), engine.values()
    if not engine.maximise(expectation):
        return expectation, 1
    first, between, one = engine.coordinates(), engine.values(), engine.expect()
    if engine.breaks or not engine.maximise(one):
        return one, 1
    if engine.breaks:  # a component is gone: there is no path to extrapolate
        return engine.expect(), 2
    plain = engine.point()
    r = first - start
    v = engine.coordinates() - first - r
    paces = (between - before, engine.values() - 2 * between + before) if engine.is_near_edge() else (r, v)
    ratio = _ratio(*paces)
    if not 1.0 < ratio < math.inf:
        return engine.expect(), 2
    engine.move_to(start + 2 * ratio * r + ratio**2 * v)
    leap = one if engine.is_held() else engine.expect()
    if leap is not one and math.isfinite(leap.objective) and leap.objective >= one.objective:
        return leap, 2
    engine.move(plain)
    return engine.expect(), 3


def _ratio(r: Tensor, v: Tensor) -> float:
    return float(r.norm() / v.norm()) if float(v.norm()) > 0 else math.inf
