"""The tutorials and the README run from top to bottom, and what the tutorials show is what they print today."""

import copy
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e[-+]?\d+)?(?!\w)")


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest) -> Any:
    """A notebook as it is in the repository."""
    nbformat = pytest.importorskip("nbformat", reason="the tutorials need nbformat: pip install -e '.[test]'")
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(scope="module")
def fresh(stored: Any) -> Any:
    """The same notebook, run in a fresh kernel of this interpreter that finds pyro_em and models in the repository."""
    nbclient = pytest.importorskip("nbclient", reason="the tutorials need nbclient: pip install -e '.[test]'")
    pytest.importorskip("ipykernel", reason="the tutorials need ipykernel: pip install -e '.[test]'")
    from jupyter_client.kernelspec import KernelSpecManager

    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    resources = {"metadata": {"path": str(ROOT / "tutorials")}}
    client = nbclient.NotebookClient(copy.deepcopy(stored), kernel_name="python3", timeout=600, resources=resources)
    # Without directories to search, python3 is the kernel of sys.executable, whatever the user has installed.
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    return client.execute(env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> str:
    """What a cell prints and the text of what it displays, without the spaces that line up columns."""
    texts = [o.text if o.output_type == "stream" else o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return " ".join(" ".join(texts).split())


def differences(old: str, new: str) -> list[str]:
    """What differs between two texts: words to the letter, numbers to three digits or one in the third decimal."""
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return [f"{old}\n    is now\n{new}"]
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
    return [f"{a} is now {b}" for a, b in pairs if not math.isclose(float(a), float(b), rel_tol=1e-3, abs_tol=1.1e-3)]


def test_there_are_tutorials() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
def test_a_tutorial_runs_without_a_warning(fresh: Any) -> None:
    """A cell that raises, a failed assertion among them, ends the fixture; what is left is the error stream."""
    noise = [o.text for cell in code_cells(fresh) for o in cell.outputs if o.get("name") == "stderr"]
    assert not noise, "\n".join(noise)


@pytest.mark.slow
def test_stored_outputs_are_current(stored: Any, fresh: Any) -> None:
    counts = [cell.execution_count for cell in code_cells(stored)]
    assert counts == list(range(1, len(counts) + 1)), "Not run in order from a fresh kernel; run `make tutorials`."
    stale = [
        f"In [{old.execution_count}]: {difference}"
        for old, new in zip(code_cells(stored), code_cells(fresh), strict=True)
        for difference in differences(shown(old), shown(new))
    ]
    assert not stale, "Stale outputs; run `make tutorials`.\n" + "\n".join(stale)


def test_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # it saves a fit
    found: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S):
        exec(compile(block, "README.md", "exec"), found)
    assert round(found["em"].log_evidence, 2) == round(found["svi"].log_evidence, 2) == -276.36


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("gap 18.748 nats", "gap 18.747 nats", True),
        ("-1130.264", "-1130.9", True),
        ("-1130.264", "-1144.097", False),
        ("0.0", "0.001", True),
        ("0.007", "0.070", False),
        ("CONVERGED in 9", "MAX_STEPS in 9", False),
        ("z_0 1.0", "z_1 1.0", False),
        ("[1. 2.e-05]", "[1. 3.e-05]", True),
        ("[1. 2.]", "[1. 3.]", False),
    ],
)
def test_differences_are_found(old: str, new: str, same: bool) -> None:
    assert (differences(old, new) == []) is same
