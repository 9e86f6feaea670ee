"""The tutorials and the README run from top to bottom, and what the tutorials show is what they print today."""

import copy
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
MAX_BYTES = 300_000
MACHINE = re.compile(r"(?:^|[\s'\"(=])(?:/\w[\w.-]*/[\w.-]+|[A-Za-z]:\\)|0x[0-9a-f]{6,}", re.M)
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


def stale(stored: Any, fresh: Any) -> list[str]:
    """Why a notebook's outputs are not those of a run from top to bottom today; empty if they are."""
    counts = [cell.execution_count for cell in code_cells(stored)]
    if counts != list(range(1, len(counts) + 1)):
        return [f"Not run in order from a fresh kernel: its cells are numbered {counts}."]
    return [
        f"In [{old.execution_count}]: {difference}"
        for old, new in zip(code_cells(stored), code_cells(fresh), strict=True)
        for difference in differences(shown(old), shown(new))
    ]


def test_there_are_tutorials() -> None:
    assert NOTEBOOKS


def test_a_tutorial_is_small_and_ends_in_checks(stored: Any) -> None:
    kept = [o for cell in code_cells(stored) for o in cell.outputs]
    assert len(json.dumps(stored)) < MAX_BYTES
    assert not [o for o in kept if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [found for cell in code_cells(stored) for found in MACHINE.findall(shown(cell))]
    last = stored.cells[-1]
    assert last.cell_type == "code" and "assert " in last.source
    assert shown(last) == "all checks hold"


@pytest.mark.slow
def test_a_tutorial_runs_without_a_warning(fresh: Any) -> None:
    """A cell that raises, a failed assertion among them, ends the fixture; what is left is the error stream."""
    noise = [o.text for cell in code_cells(fresh) for o in cell.outputs if o.get("name") == "stderr"]
    assert not noise, "\n".join(noise)


@pytest.mark.slow
def test_stored_outputs_are_current(stored: Any, fresh: Any) -> None:
    found = stale(stored, fresh)
    assert not found, "Stale outputs; run `make tutorials`.\n" + "\n".join(found)


def notebook(*outputs: str | None, first: int = 1) -> Any:
    """One code cell for each output."""
    v4 = pytest.importorskip("nbformat", reason="the tutorials need nbformat: pip install -e '.[test]'").v4
    cells = [
        v4.new_code_cell("", execution_count=i, outputs=[] if text is None else [v4.new_output("stream", text=text)])
        for i, text in enumerate(outputs, first)
    ]
    return v4.new_notebook(cells=[v4.new_markdown_cell("Words."), *cells])


def test_a_stale_tutorial_is_found() -> None:
    fresh = notebook("a 1.0\n", "b 2.0\n")
    assert stale(notebook("a 1.0\n", "b   2.0\n"), fresh) == []
    assert stale(notebook("a 1.0\n", "b 2.5\n"), fresh) == ["In [2]: 2.5 is now 2.0"]
    assert len(stale(notebook("c 1.0\n", None), fresh)) == 2
    assert "numbered [3, 4]" in stale(notebook("a 1.0\n", "b 2.0\n", first=3), fresh)[0]


@pytest.mark.parametrize(
    ("text", "bound"),
    [("<object at 0x7f12ab34cd56>", True), ("'/home/me/x.csv'", True), ("C:\\x", True), ("and/or 1/2 0x1", False)],
)
def test_machines_are_found(text: str, bound: bool) -> None:
    assert bool(MACHINE.search(text)) is bound


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
