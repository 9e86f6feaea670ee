"""What the tests of this folder share: models on tiny data, and the corpus fitted and summed once per process."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

from oracle import Oracle, summed
from programs import PROGRAMS, Made, Program
from torch import Tensor

from models import REGISTRY, load_model
from pyro_em import EM, FitResult, fit
from pyro_em.posterior import ExactPosterior

__all__ = ["BY_NAME", "CASES", "MODELS", "Solved", "evaluate", "fitted", "solve"]

# Models that EM refuses, and why.
NOT_FOR_EM = dict.fromkeys(
    ["vae", "semi_supervised_vae", "gaussian_mixture_vae"], "its codes are continuous, one per datum"
)
SIZES = {"num": 24, "length": 6}


def _make_model(name: str) -> Made:
    module = load_model(name)
    known = inspect.signature(module.simulate).parameters
    return module.make()[0], module.simulate(**{k: v for k, v in SIZES.items() if k in known}), {}


MODELS = [
    Program(f"models.{name}", partial(_make_model, name), frozenset({"plate"}))
    for name in REGISTRY
    if name not in NOT_FOR_EM
]
CASES = [*PROGRAMS, *MODELS]
BY_NAME = {case.name: case for case in CASES}


def fitted(program: Program, strategy: Any, init: Mapping[str, Tensor] | None = None, **options: Any) -> FitResult:
    """Fit a fresh copy of the program from its own start, or from ``init``."""
    model, args, kwargs = program.make()
    init = init or program.given or None
    return fit(model, *args, strategy=strategy, init=init, progress=False, **options, **kwargs)


def evaluate(program: Program) -> FitResult:
    """The program at its start, one E-step and no M-step; done once per process."""
    return _evaluate(program.name)


@cache
def _evaluate(name: str) -> FitResult:
    return fitted(BY_NAME[name], EM(max_steps=0))


@dataclass(frozen=True)
class Solved:
    """A program of the corpus at its start, by elimination and by listing all assignments."""

    program: Program
    result: FitResult
    oracle: Oracle

    @cached_property
    def post(self) -> ExactPosterior:
        return self.result.posterior()


def solve(program: Program) -> Solved:
    """Both answers; the point estimates' own densities are in neither evidence."""
    return _solve(program.name)


@cache
def _solve(name: str) -> Solved:
    return Solved(BY_NAME[name], _evaluate(name), summed(BY_NAME[name], priors=False))
