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
    "gaussian_structures": Entry(
        "models.gaussian_structures",
        "irises, covariances shared or not: mclust's EII to VVV",
        {"lr": 0.05, "max_steps": 2000},
    ),
    "binomial_mixture": Entry(
        "models.binomial_mixture",
        "boys in families of twelve, hardly more spread than binomial",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "multinomial_mixture": Entry(
        "models.multinomial_mixture",
        "brands of margarine in household baskets, many local maxima",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "documents": Entry(
        "models.documents",
        "the same baskets as documents of words, in nested plates",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "two_coins": Entry(
        "models.two_coins",
        "which of two coins was tossed, weights known",
        {"lr": 0.05, "max_steps": 500},
    ),
    "latent_class": Entry(
        "models.latent_class",
        "polytomous items on board the Titanic, missing answers allowed",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "latent_class_regression": Entry(
        "models.latent_class_regression",
        "marriages in two classes, by years and children",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "regression_mixture": Entry(
        "models.regression_mixture",
        "a line and a parabola in one cloud of points",
        {"lr": 0.1, "max_steps": 2000},
    ),
    "poisson_regressions": Entry(
        "models.poisson_regressions",
        "patents by research spending, three log-linear laws",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "mixture_of_experts": Entry(
        "models.mixture_of_experts",
        "the same patents, gated by a covariate",
        {"lr": 0.05, "max_steps": 2000},
    ),
    "neural_experts": Entry(
        "models.neural_experts",
        "the same patents, gated by a network",
        {"lr": 0.02, "max_steps": 2000},
    ),
    "zero_inflated": Entry(
        "models.zero_inflated",
        "articles of biochemists, some of whom write none",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "hurdle": Entry(
        "models.hurdle",
        "the same articles: any, and how many then",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "dawid_skene": Entry(
        "models.dawid_skene",
        "psychiatric diagnoses by raters who err",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "naive_bayes": Entry(
        "models.naive_bayes",
        "irises, most of unknown species",
        {"lr": 0.05, "max_steps": 2000},
    ),
    "abo": Entry(
        "models.abo",
        "blood groups and the genes behind them",
        {"lr": 0.05, "max_steps": 500},
    ),
    "linkage": Entry(
        "models.linkage",
        "Dempster, Laird and Rubin's animals",
        {"lr": 0.05, "max_steps": 500},
    ),
    "noisy_or": Entry(
        "models.noisy_or",
        "gaps in knowledge behind wrong answers",
        {"lr": 0.05, "max_steps": 2000},
    ),
    "item_response": Entry(
        "models.item_response",
        "test items by ability, on a quadrature grid",
        {"lr": 0.05, "max_steps": 500},
    ),
    "occupancy": Entry(
        "models.occupancy",
        "a beetle that visits overlook",
        {"lr": 0.05, "max_steps": 500},
    ),
    "cure": Entry(
        "models.cure",
        "remissions, some of them for good",
        {"lr": 0.05, "max_steps": 1000},
    ),
    "gaussian_hmm": Entry(
        "models.gaussian_hmm",
        "Old Faithful's waits as a Markov chain",
        {"lr": 0.1, "max_steps": 300},
    ),
    "poisson_hmm": Entry(
        "models.poisson_hmm",
        "earthquakes a year, in calm and in restless times",
        {"lr": 0.1, "max_steps": 300},
    ),
    "categorical_hmm": Entry(
        "models.categorical_hmm",
        "Old Faithful's waits in four classes",
        {"lr": 0.1, "max_steps": 300},
    ),
    "autoregressive_hmm": Entry(
        "models.autoregressive_hmm",
        "a central bank's rate, each by the one before",
        {"lr": 0.05, "max_steps": 500},
    ),
    "markov_switching": Entry(
        "models.markov_switching",
        "the same rate at two levels, a stationary start",
        {"lr": 0.1, "max_steps": 300},
    ),
    "factorial_hmm": Entry(
        "models.factorial_hmm",
        "the earthquakes again, by two chains that add up",
        {"lr": 0.05, "max_steps": 500},
    ),
    "mixture_of_hmms": Entry(
        "models.mixture_of_hmms",
        "epileptics of two kinds, each with calm and bad spells",
        {"lr": 0.05, "max_steps": 500},
    ),
    "capture_recapture": Entry(
        "models.capture_recapture",
        "birds that are dead or were overlooked",
        {"lr": 0.1, "max_steps": 300},
    ),
    "vae": Entry(
        "models.vae",
        "handwritten digits, amortised guide",
        {"lr": 1e-3, "batch_size": 128, "max_epochs": 30},
    ),
    "semi_supervised_vae": Entry(
        "models.semi_supervised_vae",
        "the same digits, a hundred of them labelled",
        {"lr": 3e-3, "batch_size": 256, "max_epochs": 50},
    ),
    "gaussian_mixture_vae": Entry(
        "models.gaussian_mixture_vae",
        "the same digits, codes in clusters",
        {"lr": 3e-3, "batch_size": 256, "max_epochs": 50},
    ),
}


def load_model(name: str) -> ModuleType:
    """The module behind `name`, imported only now; `ValueError` for a name not in `REGISTRY`."""
    if name not in REGISTRY:
        raise ValueError(f"A model is one of {', '.join(REGISTRY)}; got {name!r}.")
    return import_module(REGISTRY[name].module)
