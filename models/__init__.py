"""Plain Pyro programs on real data: each runs without any fitting package.

Every module has `make() -> (model, guide or None)`, `load()` and `simulate(num, ..., seed)`; the
last two return the model's positional arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["REGISTRY", "Entry", "load_model"]


@dataclass(frozen=True)
class Entry:
    """Where a model lives, what it is, and how stochastic steps suit it (`lr` is Adam's)."""

    module: str
    summary: str
    svi: Mapping[str, Any] = field(default_factory=dict)


REGISTRY: dict[str, Entry] = {
    "gaussian_mixture": Entry(
        "models.gaussian_mixture",
        "Old Faithful's eruptions, full covariances",
        {"lr": 0.1, "max_steps": 1000},
    ),
    "bernoulli_mixture": Entry(
        "models.bernoulli_mixture",
        "latent classes of five test items",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "poisson_mixture": Entry(
        "models.poisson_mixture",
        "death notices per day, a flat likelihood",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "gaussian_hmm": Entry(
        "models.gaussian_hmm",
        "Old Faithful's waits as a Markov chain",
        {"lr": 0.1, "max_steps": 300},
    ),
    "vae": Entry(
        "models.vae",
        "handwritten digits, amortised guide",
        {"lr": 1e-3, "batch_size": 128, "max_epochs": 30},
    ),
}


def load_model(name: str) -> ModuleType:
    """The module behind `name`, imported only now; `ValueError` for a name not in `REGISTRY`."""
    if name not in REGISTRY:
        raise ValueError(f"A model is one of {', '.join(REGISTRY)}; got {name!r}.")
    return import_module(REGISTRY[name].module)
