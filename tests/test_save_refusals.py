"""Files that do not belong to the model are refused, and code in a file is not run."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.saving import ADAM, amortised, fitted, mixture
from torch import Tensor
from torch.distributions.constraints import interval, positive
from untouched import untouched

from pyro_em import SVI, FitResult, SaveError


def renamed(x: Tensor) -> None:
    pyro.param("centres", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.param("scale", torch.tensor(1.0), constraint=positive), 1.0), obs=x)


def constrained(x: Tensor) -> None:
    pyro.param("scale", torch.tensor(1.0), constraint=interval(0.0, 9.0))
    mixture(x)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (renamed, r"model lacks \['locs', 'weights'\], and has \['centres'\]"),
        (partial(mixture, components=3), r"'(locs|weights)' is float64\[2\] in .*, and float64\[3\] in the model"),
        (constrained, r"'scale' is under GreaterThan.*and under Interval"),
    ],
)
def test_another_model_is_refused(model: Any, match: str, tmp_path: Path) -> None:
    fitted().save(tmp_path / "fit.pt")
    with untouched(), pytest.raises(SaveError, match=match):
        FitResult.load(tmp_path / "fit.pt", model)


def test_another_precision_is_refused(tmp_path: Path) -> None:
    fitted().save(tmp_path / "fit.pt")
    torch.set_default_dtype(torch.float32)
    with pytest.raises(SaveError, match=r"is float64\[\d?\] in .*, and float32.*set_default_dtype"):
        FitResult.load(tmp_path / "fit.pt", mixture)


def test_another_guide_is_refused(tmp_path: Path) -> None:
    model, guide = amortised()
    fitted(model, strategy=SVI(guide, optim=ADAM, max_steps=2)).save(tmp_path / "fit.pt")

    def other(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Normal(pyro.param("a", torch.zeros(())), 1.0))

    with pytest.raises(SaveError, match=r"lacks \['net\$\$\$0.bias'.*and has \['a'\]"):
        FitResult.load(tmp_path / "fit.pt", model, guide=other)
    fitted().save(tmp_path / "em.pt")
    with pytest.raises(SaveError, match="leave guide= out"):
        FitResult.load(tmp_path / "em.pt", mixture, guide=guide)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    for content in (b"", b"something else", pickle.dumps(print)):
        path.write_bytes(content)
        with pytest.raises(SaveError, match=r"is no file that FitResult.save wrote"):
            FitResult.load(path, mixture)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(SaveError, match=r"is no file that FitResult.save wrote"):
        FitResult.load(path, mixture)
    fitted().save(path)
    payload = torch.load(path, weights_only=True)
    torch.save({**payload, "format": 99}, path)
    with pytest.raises(SaveError, match="has format 99; this version reads 1"):
        FitResult.load(path, mixture)
    with pytest.raises(FileNotFoundError):
        FitResult.load(tmp_path / "nowhere.pt", mixture)


class Deadly:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return (exit, ())


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"format": 1, "inference": Deadly()}, tmp_path / "fit.pt")
    with pytest.raises(SaveError, match=r"is no file that FitResult.save wrote"):
        FitResult.load(tmp_path / "fit.pt", mixture)
