"""Maxima from the literature and from other packages, the tables they belong to, and how a fit is held against them.

`data/gold.json` has, by case: the maximised log-likelihood and the tolerance that its sources support; the number of
free parameters; the parameters; a constant (multinomial coefficients) that it includes and the model here does not; and
the sources, packages with version and call. None of it comes from pyro_em.
"""

import csv
import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints
from torch.testing import assert_close

from pyro_em import FitResult

__all__ = ["Gold", "columns", "gold", "num_params", "table"]

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "tests" / "data", ROOT / "models" / "data"]
ELSEWHERE = "PYRO_EM_GOLD"


@dataclass(frozen=True)
class Gold:
    """What a fit should find; `params` in float64, by the name of the published parameter."""

    name: str
    log_likelihood: float
    tol: float
    num_params: int
    params: Mapping[str, Tensor]
    constant: float = 0.0

    def check(self, result: FitResult, found: Mapping[str, Tensor], labels: Mapping[str, int], tol: float) -> None:
        """The maximum, the number of parameters, and the parameters up to a permutation of labels.

        Args:
            result: the fit.
            found: its parameters, under the published names.
            labels: which dimension of each published parameter the labels index; other parameters have none.
            tol: absolute and relative tolerance of the parameters.
        """
        assert result.log_evidence + self.constant == pytest.approx(self.log_likelihood, abs=self.tol)
        assert found.keys() == self.params.keys()
        closest = min(self._relabelled(found, labels), key=self._distance)
        for name, value in self.params.items():
            assert_close(closest[name], value, rtol=tol, atol=tol, msg=lambda text, n=name: f"{n}: {text}")

    def _relabelled(self, found: Mapping[str, Tensor], labels: Mapping[str, int]) -> list[dict[str, Tensor]]:
        size = next((found[name].shape[dim] for name, dim in labels.items()), 1)
        orders = [torch.tensor(order) for order in itertools.permutations(range(size))]
        return [{n: v.index_select(labels[n], o) if n in labels else v for n, v in found.items()} for o in orders]

    def _distance(self, found: Mapping[str, Tensor]) -> float:
        return sum(((found[n] - v) / (1 + v.abs())).square().sum().item() for n, v in self.params.items())


def gold(name: str) -> Gold:
    """The case of that name; sources and literature are for the reader of the file."""
    case = json.loads((ROOT / "tests" / "data" / "gold.json").read_text())[name]
    params = {key: torch.tensor(value, dtype=torch.float64) for key, value in case.pop("params").items()}
    case.pop("source")
    return Gold(name, params=params, **case)


def table(name: str) -> list[dict[str, str]]:
    """The rows of a table that the repository has, or of one that lies where PYRO_EM_GOLD points; skips without it."""
    folders = [*FOLDERS, *(Path(folder) for folder in [os.environ.get(ELSEWHERE)] if folder)]
    for folder in folders:
        if (folder / name).exists():
            with (folder / name).open(newline="") as file:
                return list(csv.DictReader(file))
    pytest.skip(f"{name} may not be redistributed; set {ELSEWHERE} to a folder that has it (see CONTRIBUTING)")


def columns(rows: list[dict[str, str]], *names: str) -> Tensor:
    """Some columns of a table as numbers, (N, columns)."""
    return torch.tensor([[float(row[name]) for name in names] for row in rows], dtype=torch.float64)


def num_params(model: Callable[..., Any], *args: Any) -> int:
    """Free dimensions of a model's parameters, counted from their constraints."""
    with pyro.get_param_store().scope(), torch.no_grad():
        trace = poutine.trace(model).get_trace(*args)
    sites = [site for site in trace.nodes.values() if site["type"] == "param"]
    return sum(_free(site["value"], site["kwargs"].get("constraint", constraints.real)) for site in sites)


def _free(value: Tensor, constraint: constraints.Constraint) -> int:
    if constraint is constraints.simplex:
        return value.numel() - value[..., 0].numel()
    if constraint is constraints.lower_cholesky:
        size = value.shape[-1]
        return value[..., 0, 0].numel() * size * (size + 1) // 2
    assert constraint in (constraints.real, constraints.positive, constraints.unit_interval), constraint
    return value.numel()
