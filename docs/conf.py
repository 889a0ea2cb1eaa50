"""The documentation site, built by Sphinx from the pages in this folder, the READMEs, the parsers and the docstrings.

    pip install -e '.[docs]'
    sphinx-build -W -c docs . build/docs     # then open build/docs/index.html

The source folder is that of the project, so that the READMEs are pages of the site and their links work here, too.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # docstrings are read from the imported modules

from command_reference import reference  # noqa: E402

project = author = "sae-jax"
release = version = importlib.metadata.version(project)
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["*.md", "harvest/**.md", "sae_jax/**.md", "analysis/**.md", "docs/**.md", "docs/**.ipynb"]
exclude_patterns = ["build", "runs"]
myst_heading_anchors = 4  # links between pages name headings
nb_execution_mode = "off"  # a test runs the notebooks
highlight_language = "text"  # of blocks that name no language
smartquotes = False  # it would turn the -- of flags into a dash
default_role = "code"  # docstrings put names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
html_theme = "furo"
html_static_path = ["style"]
html_css_files = ["site.css"]
html_title = f"{project} {release}"
html_show_copyright = False
html_copy_source = False

FORWARD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">
<title>sae-jax</title><a href="docs/index.html">sae-jax</a></html>
"""


def add_reference(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the flags of all commands to the page of commands."""
    if page == "docs/commands":
        source[0] += reference()


def add_forward(app: Sphinx, error: Exception | None) -> None:
    """Let the top of the site lead to its first page, which is a folder deeper."""
    if error is None:
        (Path(app.outdir) / "index.html").write_text(FORWARD, encoding="utf-8")


def outdated(*_: object) -> list[str]:
    """The pages that are read again in every build, because they are made from code."""
    return ["docs/commands"]


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_reference)
    app.connect("env-get-outdated", outdated)
    app.connect("build-finished", add_forward)
