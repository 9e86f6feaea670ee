"""The examples of the guides run, and every public name has its place in the API pages."""

import doctest
import re
import runpy
from pathlib import Path

import pytest

import pyro_em

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
GUIDES = sorted((TUTORIALS / "guides").glob("*.md"))
API = "\n".join(path.read_text("utf-8") for path in sorted((TUTORIALS / "api").glob("*.md")))
BLOCK = re.compile(r"^```pycon\n(.*?)^```$", re.M | re.S)


def examples(page: Path) -> doctest.DocTest:
    """The `pycon` blocks of a page as one doctest whose line numbers are those of the page."""
    text = page.read_text("utf-8")
    kept = [False] * len(text)
    for block in BLOCK.finditer(text):
        kept[slice(*block.span(1))] = [True] * len(block[1])
    code = "".join(c if keep or c == "\n" else "" for c, keep in zip(text, kept, strict=True))
    return doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)


WITH_EXAMPLES = [page for page in GUIDES if BLOCK.search(page.read_text("utf-8"))]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_of_a_guide(page: Path) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    found = runner.run(examples(page), out=report.append)
    assert found.attempted > 10
    assert not found.failed, "".join(report)


def test_an_example_that_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```pycon\n>>> 1 + 1\n3\n```\n\n```python\n>>> 1 + 1\n4\n```\n", "utf-8")
    report: list[str] = []
    assert doctest.DocTestRunner().run(examples(page), out=report.append) == (1, 1)
    assert 'page.md", line 4' in report[0]


def test_there_are_guides() -> None:
    assert {"strategies", "from_sklearn", "from_hmmlearn", "from_pyro_svi"} <= {page.stem for page in WITH_EXAMPLES}


@pytest.mark.parametrize("name", pyro_em.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    assert re.search(rf"^\.\. auto(class|exception|function):: {name}(\(\))?$", API, re.M)


def test_the_ratios_in_the_readme_are_those_on_file() -> None:
    script = runpy.run_path(str(TUTORIALS.parent / "tests" / "bench" / "ratios.py"))
    readme = (TUTORIALS.parent / "README.md").read_text("utf-8")
    rows = script["recorded"]()
    assert len(rows) > 30
    assert script["written"](readme, rows) == readme
    rows[-1]["ratio"] += 0.1
    assert script["written"](readme, rows) != readme
