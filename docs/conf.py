"""The documentation site, built by Sphinx from the READMEs of the project, the pages in this folder and the docstrings.

    pip install -e '.[docs]'
    sphinx-build -W -c docs . build/docs     # then open build/docs/docs/index.html

The source folder is that of the project, so that the READMEs are pages of the site and their links work here, too.
"""

import importlib.metadata
import io
import os
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["COLUMNS"] = "96"  # the width of the help texts

project = author = copyright = "sae-jax"
release = version = importlib.metadata.version(project)
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["*.md", "harvest/**.md", "sae_jax/**.md", "analysis/**.md", "docs/**.md", "docs/**.ipynb"]
exclude_patterns = ["build"]
myst_heading_anchors = 4  # links between pages name headings
nb_execution_mode = "off"  # a test runs the notebooks
default_role = "code"  # docstrings put names in single backticks
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"{project} {release}"


class CommandHelp(SphinxDirective):
    """The help of a command of `sae-jax`, as the terminal prints it. Training, which has no name, is `train`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from main import main

        text, command = io.StringIO(), self.arguments[0]
        with redirect_stdout(text), suppress(SystemExit):
            main(["--help"] if command == "train" else [command, "--help"])
        return [nodes.literal_block(text=text.getvalue(), language="text")]


def setup(app: Sphinx) -> None:
    app.add_directive("command-help", CommandHelp)
