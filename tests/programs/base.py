"""What an entry of the corpus is, and the registry that each file of this package adds to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["PROGRAMS", "TAGS", "Made", "Program", "f64", "program", "select"]

TAGS = {
    "plate": "an enumerated latent inside a plate",
    "global": "an enumerated latent outside every plate",
    "nested": "plates within plates",
    "markov": "latents in a pyro.markov loop",
    "map": "latents that are to be point-estimated (same programs as 'continuous')",
    "continuous": "global continuous latents; `Program.given` has a value for each",
    "mask": "poutine.mask or dist.mask",
    "nan": "NaN in the data, under a mask",
    "obs_mask": "pyro.sample(..., obs_mask=...)",
    "scale": "poutine.scale",
    "subsample": "a plate that sees a subset of its data, hence a scale",
    "network": "arguments computed by a torch module",
    "module": "the model is a PyroModule",
    "factor": "pyro.factor: the joint is not normalised",
    "deterministic": "pyro.deterministic",
    "family": "a latent that is not Categorical",
    "impossible": "states of probability zero",
    "edge": "N = 1, K = 1 or a latent without children",
    "float32": "single precision: compare with a loose tolerance",
}

Made = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

f64 = partial(torch.tensor, dtype=torch.float64)


@dataclass(frozen=True)
class Program:
    """One entry of the corpus; `make()` returns a fresh `(model, args, kwargs)` at each call.

    `given` holds a value for each continuous latent, where the joint may be evaluated.
    """

    name: str
    make: Callable[[], Made]
    tags: frozenset[str]
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name


PROGRAMS: list[Program] = []


def select(*tags: str, without: tuple[str, ...] = ()) -> list[Program]:
    """The programs that carry every tag in `tags` and none in `without`."""
    if unknown := {*tags, *without} - TAGS.keys():
        raise ValueError(f"Unknown tags {sorted(unknown)}; known are {sorted(TAGS)}.")
    return [p for p in PROGRAMS if p.tags.issuperset(tags) and p.tags.isdisjoint(without)]


def program(
    *tags: str, given: Mapping[str, Tensor] | None = None
) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Decorate a `make` to enter it in the corpus under its own name."""

    def register(make: Callable[[], Made]) -> Callable[[], Made]:
        PROGRAMS.append(Program(make.__name__, make, frozenset(tags), given or {}))
        return make

    return register
