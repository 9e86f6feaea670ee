"""Small Pyro models that differ in how their parameters reach the distributions, each with the verdict it deserves.

The value of an argument does not say where it came from. ``locs[z]``, ``scale.expand(...)`` and ``torch.cat([a, b])``
select elements of a parameter, so that a closed form applies to whatever the user wrote; ``clamp``, ``relu`` or
``detach`` look like selections at most values, and are none. Data and starts are fixed and irregular; starts lie inside
the constraints, near enough to the maximum of Q that it is one, and far enough for a step to be seen.
"""

from arguments import (  # noqa: F401  (importing a file registers its entries)
    chains,
    corners,
    coupled,
    events,
    families,
    links,
    modules,
    opaque,
    pieces,
    predictors,
    priors,
    regressions,
    selections,
)
from arguments.base import CASES, LINKS, OWNERS, VERDICTS, Case, Route

__all__ = ["CASES", "LINKS", "OWNERS", "VERDICTS", "Case", "Route"]
