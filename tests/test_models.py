"""The programs in `models/`: they draw what they say, read what they ship, and run from the command line."""

import csv
import inspect
from functools import partial
from math import sqrt
from pathlib import Path

import pytest
import torch
from cases import NOT_FOR_EM
from gold import num_params
from torch import Tensor
from untouched import untouched

from models import REGISTRY, load_model
from models.__main__ import main
from pyro_em import EM, fit

DATA = Path(__file__).parents[1] / "models" / "data"

every_model = pytest.mark.parametrize("name", REGISTRY)


# Simulated data -----------------------------------------------------------------------------------

# Where the model's defaults are those of the real data, what fits the simulated.
OPTIONS = {"documents": {"vocabulary": 4}}
SMALL = {"gaussian_hmm": {"num": 30, "length": 8}}  # of the others, a thousand data or times


@pytest.mark.parametrize("name", [name for name in REGISTRY if hasattr(load_model(name), "TRUTH")])
def test_what_a_model_simulates_is_what_it_describes(name: str) -> None:
    """Twice the gain from the truth to the maximum beside it is a chi-squared of as many degrees as parameters."""
    module = load_model(name)
    model = partial(module.make()[0], **OPTIONS.get(name, {}))
    known = inspect.signature(module.simulate).parameters
    data = module.simulate(**SMALL.get(name, {"num" if "num" in known else "length": 1000}))
    at_truth = fit(model, *data, strategy=EM(max_steps=0), init=module.TRUTH, progress=False)
    assert at_truth.params.keys() == module.TRUTH.keys()
    best = fit(model, *data, strategy=EM(accelerate="squarem"), init=module.TRUTH, progress=False)
    freedom = num_params(model, *data)
    assert 0 < 2 * (best.log_evidence - at_truth.log_evidence) < freedom + 4 * sqrt(2 * freedom)


@every_model
def test_simulated_data_depend_on_the_seed_alone(name: str) -> None:
    module = load_model(name)
    sizes = {key: 12 for key in ("num", "length") if key in inspect.signature(module.simulate).parameters}
    with untouched():
        first = module.simulate(**sizes, seed=1)
    torch.rand(3)
    again, other = module.simulate(**sizes, seed=1), module.simulate(**sizes, seed=2)
    size = sizes.get("num", sizes.get("length"))
    assert all(len(tensor) - size in (0, 1) for tensor in first)  # a series may have a value before its first
    assert all(same(one, two) for one, two in zip(first, again, strict=True))
    assert not all(same(one, two) for one, two in zip(first, other, strict=True))


def same(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.nan_to_num(-1.0), two.nan_to_num(-1.0))


# Real data ----------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("strategy", ["em", "svi"])
def test_every_model_runs_from_the_command_line(name: str, strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    if strategy == "em" and name == "gaussian_hmm":
        pytest.skip("a chain of 299 takes seconds; tests of EM fit shorter ones")
    torch.set_default_dtype(torch.float32)  # as outside of tests: the digits and their networks are in it
    code = main([name, "--strategy", strategy, "--max-steps", "1"])
    output = capsys.readouterr()
    if strategy == "em" and name in NOT_FOR_EM:
        assert code == 2
        assert "finite support" in output.err
    else:
        assert code == 0
        assert output.out.startswith("objective")


def test_the_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*REGISTRY]


def test_every_table_has_its_source() -> None:
    """One row of the README a file, and as many rows in the file as it says."""
    lines = [line.split("|") for line in (DATA / "README.md").read_text().splitlines() if line.startswith("| `")]
    described = {line[1].strip(" `"): int(line[2]) for line in lines}
    assert described.keys() == {file.name for file in DATA.glob("*.csv")}
    for name, num_rows in described.items():
        with (DATA / name).open(newline="") as file:
            assert len(list(csv.reader(file))) - 1 == num_rows, name
