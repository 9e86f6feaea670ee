"""Small Pyro programs, one per structure that a fit must get right, on data tiny enough to sum.

Each is written as a Pyro user would write it: no `config_enumerate`, no hint for the fit. Data and initial parameters
are fixed and irregular, so that no two probabilities agree by symmetry and a transposed table cannot pass unnoticed.
Scales are mostly shared between components, so that a few EM steps on so few data do not collapse one of them.
"""

from programs import (  # noqa: F401  (importing a file registers its programs)
    chains,
    edges,
    families,
    masks,
    mixtures,
    modules,
    plates,
    priors,
    scales,
)
from programs.base import PROGRAMS, TAGS, Made, Program, select

__all__ = ["PROGRAMS", "TAGS", "Made", "Program", "select"]
