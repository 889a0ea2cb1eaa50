"""The documentation site builds without warnings and without a network, and what its pages and notebooks say works.

Blocks of a page that are marked as `text` or `{code-block}` are not run: they install, need a hub or run until Ctrl-C.
"""

import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import nbformat
import pytest
from command_line import ROOT
from nbclient import NotebookClient
from pages import BLOCK, SITE, new_home, pasted, typed, typed_lines

import main
from analysis.cli import COMMANDS

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
RUN = ("", "python")  # languages of blocks that are run
TRIED = [page for page in sorted(SITE) if any(language in RUN for language, _ in BLOCK.findall(page.read_text()))]
assert len(NOTEBOOKS) == 2 and len(TRIED) == 5


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    built = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", ROOT / "docs", ROOT, built]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return built


def test_the_site_has_all_pages_and_loads_nothing_from_a_network(site):
    pages = {path.relative_to(site) for path in site.rglob("*.html")}
    assert {page.relative_to(ROOT).with_suffix(".html") for page in (*SITE, *NOTEBOOKS)} <= pages
    for page in pages:
        html = (site / page).read_text()
        assert not re.search(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//', html), page
        assert not re.search(r'<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//', html), page


def test_the_reference_describes_every_flag_that_help_lists(site, capsys):
    page = (site / "docs" / "commands.html").read_text()
    described = set(re.findall(r'id="cmdoption-sae-jax-([a-z0-9-]+)"', page))
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main.main([command, "--help"])
        flags = set(re.findall(r"^  --([a-z][a-z0-9-]*)", capsys.readouterr().out, re.M))
        assert flags and {f"{command}-{flag}" for flag in flags} <= described, command
    assert str(Path.home()) not in page


def test_notebooks_have_no_outputs():
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    return new_home(tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("page", TRIED, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_work_in_order(page, at_home):
    """Blocks of Python with no command between them are typed into one Python session."""
    to_run = [(language, content) for language, content in BLOCK.findall(page.read_text()) if language in RUN]
    for language, contents in groupby(to_run, key=lambda block: block[0]):
        code = "\n".join(content for _, content in contents)
        if language == "python":
            out, errors = pasted(code, at_home, timeout=1800)
            assert "Error" not in errors and "Traceback" not in errors, errors
            continue
        for line in typed_lines(code):
            done = typed(line, at_home, timeout=1800)
            assert done.returncode == 0, (line, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, at_home):
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": at_home[0]}}).execute(env=at_home[1])
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
