"""The structure of the repository, read from its sources by ``ast`` and enforced.

Imports in pyro_em go down only; the param store has one owner; files and functions stay small;
models/ holds Pyro programs that run without pyro_em. An import counts wherever it stands, in a
function or under ``TYPE_CHECKING`` too: a type is a dependency like any other.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom. A name is a module or a subpackage of pyro_em; a new one goes in one row.
LAYERS = (
    ("__init__",),
    ("fit", "restarts", "compare", "result", "save", "show"),
    ("em", "svi"),
    ("posterior", "chain_posterior", "guide_posterior", "predict", "diagnostics", "export"),
    ("compiled",),
    ("probing",),
    ("graph", "families"),
    ("chains",),
    (
        *("params", "zeros", "problem", "strategy", "status", "errors"),
        *("optim", "summed", "data", "loaders", "checked", "modules", "rng", "garbage", "stirling"),
    ),
)
# In these rows siblings may import each other, as long as no cycle comes of it.
OPEN_ROWS = {1, 3, 8}
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}

PARAM_STORE = {"get_param_store", "_PYRO_PARAM_STORE", "clear_param_store"}
MODEL_IMPORTS = {"models", "pyro", "torch", *sys.stdlib_module_names}
MODEL_RUNNERS = {"models/__main__.py", "models/quickstart.py"}
FILE_LINES = 300
FUNCTION_LINES = 50


@dataclass(frozen=True)
class Source:
    """One file: its path from the repository root, and what it says."""

    path: PurePosixPath
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    @property
    def unit(self) -> str:
        """The name this file goes by in LAYERS: pyro_em/em/loop.py is ``em``."""
        return PurePosixPath(self.path.parts[1]).stem


def sources(folder: str) -> list[Source]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return [Source(PurePosixPath(file.relative_to(ROOT).as_posix()), file.read_text("utf-8")) for file in files]


def imports(source: Source, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, relative imports resolved."""
    package = source.path.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def imported_units(source: Source, files: list[Source]) -> Iterator[tuple[int, str]]:
    """Line and unit of every import from pyro_em; what names no module is the package's own."""
    units = ROW.keys() | {file.unit for file in files}
    for line, name in imports(source, source.tree):
        top, *below = name.split(".")
        if top == "pyro_em":
            yield line, below[0] if below and below[0] in units else "__init__"


def check_table(files: list[Source]) -> list[str]:
    return [
        f"{file.path}: '{file.unit}' is in no layer. Add it to the row of LAYERS in "
        f"tests/test_layers.py whose modules it may stand beside."
        for file in files
        if file.unit not in ROW
    ]


def check_direction(files: list[Source]) -> list[str]:
    wrong = []
    for file in files:
        for line, unit in imported_units(file, files):
            if unit == file.unit or not {unit, file.unit} <= ROW.keys():
                continue  # check_table speaks about a unit outside the table
            here, there = ROW[file.unit], ROW[unit]
            if there < here or (there == here and here not in OPEN_ROWS):
                wrong.append(
                    f"{file.path}:{line}: '{file.unit}' (layer {here}) imports '{unit}' "
                    f"(layer {there}); imports go to a layer with a higher number."
                )
    return wrong


def check_cycles(files: list[Source]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for file in files:
        needs = graph.setdefault(file.unit, set())
        needs.update(unit for _, unit in imported_units(file, files) if unit != file.unit)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["pyro_em: import cycle " + " -> ".join(reversed(error.args[1]))]
    return []


def check_param_store(files: list[Source]) -> list[str]:
    wrong = []
    for file in files:
        if file.path == PurePosixPath("pyro_em/params.py"):
            continue
        for node in ast.walk(file.tree):
            # The fields that hold an identifier: ast.Name, ast.Attribute, ast.alias.
            names = {getattr(node, field, None) for field in ("id", "attr", "name")}
            for name in names & PARAM_STORE:
                wrong.append(
                    f"{file.path}:{node.lineno}: {name}: only pyro_em/params.py touches the "
                    f"param store; add what is needed there."
                )
    return wrong


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    doc = node.body[0] if ast.get_docstring(node) is not None else None
    doc_lines = doc.end_lineno - doc.lineno + 1 if doc else 0
    return node.end_lineno - node.lineno + 1 - doc_lines


def check_sizes(files: list[Source]) -> list[str]:
    wrong = []
    for file in files:
        lines = len(file.text.splitlines())
        if lines > FILE_LINES:
            wrong.append(f"{file.path}: {lines} lines, at most {FILE_LINES}: one concept a file.")
        for node in ast.walk(file.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = function_lines(node)
                if size > FUNCTION_LINES:
                    wrong.append(
                        f"{file.path}:{node.lineno}: {node.name} has {size} lines without its "
                        f"docstring, at most {FUNCTION_LINES}."
                    )
    return wrong


def check_models(files: list[Source]) -> list[str]:
    wrong = []
    for file in files:
        if str(file.path) in MODEL_RUNNERS:
            continue
        tree = file.tree
        inner = {
            child
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in imports(file, node)
        }
        for line, name in imports(file, tree):
            top = name.split(".")[0]
            if top == "pyro_em" or (top not in MODEL_IMPORTS and (line, name) not in inner):
                wrong.append(
                    f"{file.path}:{line}: imports {name}; a model is a Pyro program: pyro, torch "
                    f"and the standard library only."
                )
    return wrong


PACKAGE_CHECKS = (check_table, check_direction, check_cycles, check_param_store, check_sizes)


def test_the_folders_are_where_this_file_looks() -> None:
    assert (ROOT / "pyro_em" / "py.typed").is_file()


@pytest.mark.parametrize("check", PACKAGE_CHECKS, ids=lambda check: check.__name__)
def test_package(check) -> None:
    wrong = check(sources("pyro_em"))
    assert not wrong, "\n" + "\n".join(wrong)


def test_models() -> None:
    wrong = check_models(sources("models"))
    assert not wrong, "\n" + "\n".join(wrong)


def made_up(**files: str) -> list[Source]:
    """Sources from ``pyro_em__em__loop="import torch"``: two underscores are one slash."""
    return [Source(PurePosixPath(name.replace("__", "/") + ".py"), text) for name, text in files.items()]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyro_em__em__loop", "from pyro_em.svi import elbo"),
        ("pyro_em__em__loop", "from ..svi import elbo"),
        ("pyro_em__em__loop", "from .. import svi"),
        ("pyro_em__em__loop", "def f():\n    import pyro_em.fit"),
        ("pyro_em__posterior", "from .em import EM"),
        ("pyro_em__graph__chain", "from pyro_em.families.normal import Normal"),
        ("pyro_em__params", "from pyro_em import __version__"),
        ("pyro_em__params", "if TYPE_CHECKING:\n    from .result import FitResult"),
    ],
)
def test_an_import_sideways_or_up_is_found(file: str, text: str) -> None:
    (wrong,) = check_direction(made_up(**{file: text}))
    assert "imports go to a layer with a higher number" in wrong


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyro_em__em__loop", "from .state import State\nfrom ..graph import build\nimport svi"),
        ("pyro_em__fit", "from pyro_em.em.strategy import EM\nfrom .result import FitResult"),
        ("pyro_em__status", "from .errors import PyroEMError\nfrom pyro.infer import SVI"),
    ],
)
def test_an_import_downwards_is_let_through(file: str, text: str) -> None:
    assert check_direction(made_up(**{file: text})) == []


def test_a_module_outside_the_table_is_told_where_to_go() -> None:
    files = made_up(pyro_em__helpers="", pyro_em__params="from pyro_em import helpers")
    assert check_direction(files) == []
    (wrong,) = check_table(files)
    assert "pyro_em/helpers.py" in wrong and "LAYERS in tests/test_layers.py" in wrong


def test_a_cycle_of_siblings_is_found() -> None:
    files = made_up(pyro_em__params="from .optim import step", pyro_em__optim="from . import params")
    assert check_direction(files) == []
    (wrong,) = check_cycles(files)
    assert "params -> optim" in wrong


@pytest.mark.parametrize(
    "text",
    ["from pyro import get_param_store", "pyro.clear_param_store()", "x = _PYRO_PARAM_STORE"],
)
def test_the_param_store_elsewhere_is_found(text: str) -> None:
    assert len(check_param_store(made_up(pyro_em__fit=text))) == 1
    assert check_param_store(made_up(pyro_em__params=text)) == []


def test_sizes_are_counted_without_the_docstring() -> None:
    body = "    x = 1\n" * (FUNCTION_LINES - 1)
    fits = f'def f():\n    """One.\n\n    Two.\n    """\n{body}'
    assert check_sizes(made_up(pyro_em__fit=fits)) == []
    assert len(check_sizes(made_up(pyro_em__fit=fits + "    x = 1\n"))) == 1
    assert check_sizes(made_up(pyro_em__fit="x = 1\n" * FILE_LINES)) == []
    assert len(check_sizes(made_up(pyro_em__fit="x = 1\n" * (FILE_LINES + 1)))) == 1


def test_a_model_that_needs_more_than_pyro_is_found() -> None:
    fine = "import csv\nimport torch\nfrom pyro import sample\nfrom . import data\n"
    assert check_models(made_up(models__gmm=fine + "def rows():\n    import pandas\n")) == []
    assert len(check_models(made_up(models__gmm="import numpy"))) == 1
    assert len(check_models(made_up(models__gmm="def f():\n    from pyro_em import fit"))) == 1
    assert check_models(made_up(models__quickstart="from pyro_em import fit")) == []
