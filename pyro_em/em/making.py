"""How the initial values of a model come about: by a run of it, as far as the last parameter that it makes.

What a run draws at random after that has no part in the start of a fit. So the random stream is noted where the last
parameter is made, and a start goes on from there, whatever else the run and the checks after it have drawn.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.util import get_rng_state

from pyro_em.em.checks import Arguments
from pyro_em.graph import Intervention
from pyro_em.problem import Problem

__all__ = ["Making", "make_again"]


class _Made(BaseException):
    """All parameters are made; no error, so that a model's own ``except Exception`` lets it pass."""


class Making(Messenger):
    """Note which parameters a run asks for, and the random state behind each when it comes up first.

    Args:
        until: parameters with the last of which the run ends; none for a whole run.
    """

    def __init__(self, until: Collection[str] = ()) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.state: Any = None
        self._until = frozenset(until)

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["name"] in self.names:
            return
        self.names.add(msg["name"])
        self.state = get_rng_state()
        if self._until and self._until <= self.names:
            raise _Made


def make_again(problem: Problem, data: Arguments, names: Collection[str]) -> None:
    """Make the parameters that a first run has asked for, and put the start in place.

    Raises:
        StartError: initial values on the boundary, or ``init`` that does not fit.
    """

    def run() -> None:
        try:
            with torch.no_grad(), Intervention(any_state=True), Making(names):
                problem.model(*data[0], **data[1])
        except _Made:
            pass

    problem.first_run(run)
    problem.space.track()
    problem.start()
    problem.space.check_start()
