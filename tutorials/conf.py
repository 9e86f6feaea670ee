"""Sphinx's settings: `make docs` renders this folder, and nothing is fetched while it does."""

from typing import Any

import pyro_em

project = "pyro_em"
author = "The pyro_em developers"
release = version = pyro_em.__version__
html_title = f"pyro_em {release}"
html_theme = "furo"
html_copy_source = False

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# Docstrings put code in single backticks here and there.
default_role = "code"

# The notebooks keep their outputs, and the tests hold those against fresh runs.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# A reference in a docstring must lead somewhere; a type in a signature need not.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(collections|pandas|pathlib|pyro|torch)\..*"),
    ("py:class", r"(pyro_em\.problem\.)?Problem|Evaluation|pyro_em\.(strategy\.Inference|em\.starts\.Start)"),
]


def escape_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write `*args` and "shape (N, *batch)" and never mean emphasis."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
        lines[i] = "``".join(parts)


def setup(app: Any) -> None:
    # Before napoleon, which takes what comes with the default priority, 500.
    app.connect("autodoc-process-docstring", escape_stars, priority=400)
