"""The READMEs and the pages of docs/ are correct: commands and flags exist, links have a target, examples run."""

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from command_line import ROOT
from pages import PAGES, blocks, command_lines, new_home, pasted, ran, typed, typed_lines, without_blocks, words_of

import main
from sae_jax.models.registry import KINDS

README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
(PYTHON,) = blocks(README, "python")
TRIED = typed_lines(blocks(README.split("## Five things to try")[1])[0])
LINES = sorted({line for page in PAGES for line in command_lines(page.read_text()) if "encoder-alignment" not in line})
TRAIN_NOTHING = [line for line in LINES if line.endswith(("--preset list", "--dry-run"))]
SMOKE = [line for line in command_lines(README) if "--n-samples 100 " in line]
assert len(TRIED) == 5 and len(LINES) > 30 and len(PAGES) >= 9 and len(TRAIN_NOTHING) == 2 and len(SMOKE) == 1


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    return new_home(tmp_path_factory)


@pytest.fixture(scope="module")
def pasted_block(at_home) -> tuple[Path, str, str]:
    """(the folder, standard output, standard error) after the Python block was typed into Python."""
    return at_home[0], *pasted(PYTHON, at_home)


@pytest.mark.slow
def test_the_python_block_is_pasted_line_by_line(pasted_block):
    home, out, errors = pasted_block
    assert "Error" not in errors and "Traceback" not in errors, errors
    assert (
        "SAE topk-f256-k32-lr1e-3-s0\n  topk, 256 → 256 features\n  reads blocks.2.hook_resid_pre of bundled\n" in out
    )
    assert "EXPERIMENT RESULTS" in out and "tensor(" in out and "(torch.Size([1, 10, 256]), (256, 256))" in out
    assert {"densities.png", "densities.svg", "densities.pdf"} <= {path.name for path in (home / "runs").iterdir()}


@pytest.mark.slow
def test_a_run_of_the_python_block_works_on_the_command_line(pasted_block, at_home):
    shown = ran([sys.executable, ROOT / "main.py", "show", "runs/mine", "--pareto"], at_home)
    assert shown.returncode == 0, shown.stderr
    assert "a jump_relu  b topk" in shown.stdout and f"python {ROOT / 'main.py'} study runs/mine" in shown.stdout


@pytest.mark.slow
def test_the_five_things_to_try_work_in_order(at_home):
    for line in TRIED:
        done = typed(line, at_home, timeout=1800)
        assert done.returncode == 0, (line, done.stderr)
    run = at_home[0] / "runs" / "first"
    assert (run / "report.html").exists() and (run / "analysis" / "study.json").exists()


@pytest.mark.parametrize("line", TRAIN_NOTHING)
def test_a_command_that_trains_nothing_runs_unchanged(line, at_home):
    done = typed(line, at_home)
    assert done.returncode == 0, done.stderr
    assert "member" in done.stdout or "published results" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("line", SMOKE)
def test_the_smoke_test_runs_unchanged(line, at_home):
    done = typed(line, at_home)
    assert done.returncode == 0 and "EXPERIMENT RESULTS" in done.stdout, done.stderr


def flags_of(command: str, capsys) -> set[str]:
    with pytest.raises(SystemExit) as done:
        main.run_as_command([command or "train", "--help"])
    assert done.value.code == 0
    return set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))


@pytest.mark.parametrize("line", LINES)
def test_every_command_and_flag_of_a_line_exists(line, capsys):
    first = words_of(line)[0]
    command = "" if first.startswith("-") or first == "COMMAND" else first
    assert command == "" or command in main.COMMANDS
    assert set(re.findall(r"--[a-z][a-z0-9-]*", line)) <= flags_of(command, capsys)


def test_the_readme_lists_all_commands_and_only_existing_flags(capsys):
    commands, flags = README.split("| command | what it does |")[1].split("| flag | default | meaning |")
    assert {*re.findall(r"^\| `python main\.py ([a-z-]+) ", commands, re.M)} >= set(main.COMMANDS)
    flags = flags.split("## What a run leaves")[0]
    assert set(re.findall(r"`(--[a-z][a-z0-9-]*)", flags)) <= flags_of("", capsys)


@pytest.mark.parametrize("page", ["README.md", "sae_jax/README.md"])
def test_every_kind_is_in_the_tables(page):
    assert not [kind for kind in KINDS if f"`{kind}`" not in (ROOT / page).read_text()]


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page):
    text, new = without_blocks(page.read_text()), files_to_add(CONTRIBUTING)
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        place = page.parent / target if target else page
        assert target.startswith("http") or place.exists(), target
        assert not anchor or anchor in anchors_of(place), f"{target}#{anchor}"
    first_cells = " ".join(re.findall(r"^\| (`[^|]+`) \|", text, re.M))
    for name in {*re.findall(r"`([\w/]+\.py)`", text), *re.findall(r"`([\w/]+/)`", first_cells)} - new.keys():
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


def test_the_citation_and_the_changes_fit_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\nlicense: {project['license']}\n" in citation
    assert {author["name"] for author in project["authors"]} == set(re.findall(r'- name: "(.+)"', citation))
    assert all(f"  - {keyword}\n" in citation for keyword in project["keywords"])
    assert f"\n## {project['version']}\n" in (ROOT / "CHANGELOG.md").read_text()


# The examples of CONTRIBUTING.md.


def files_to_add(text: str) -> dict[str, str]:
    """{path: content} of the Python blocks after "new file `path` ...:"."""
    return dict(re.findall(r"new file\s`([\w/]+\.py)`[^`]*?:\n\n```python\n(.*?)^```$", text, re.M | re.S))


def lines_to_add(text: str) -> list[tuple[str, str, str]]:
    """(path, line, new line) of "In `path`, after `line`, add the line `new line`"."""
    return re.findall(r"In `([\w/.]+)`, after `(.+?)`, add the line\s+`(.+?)`", text)


@pytest.mark.slow
def test_the_examples_of_contributing_work(tmp_path, at_home):
    copy, files, lines = tmp_path / "copy", files_to_add(CONTRIBUTING), lines_to_add(CONTRIBUTING)
    assert len(files) == 5 and len(lines) == 5
    for name in ("harvest", "sae_jax", "analysis", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*PAGES, ROOT / "main.py", ROOT / "pyproject.toml"):
        (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(ROOT))
    for path, content in files.items():
        (copy / path).write_text(content)
    for path, line, new in lines:
        source, added = re.subn(
            rf"^( *){re.escape(line)}$", rf"\g<0>\n\g<1>{new}", (copy / path).read_text(), flags=re.M
        )
        assert added == 1, (path, line)
        (copy / path).write_text(source)
    there = copy, at_home[1] | {"PYTHONPATH": str(copy)}
    ours = ("log_relu", "encoder_alignment")
    tried = [
        line for block in blocks(CONTRIBUTING) for line in block.splitlines() if any(name in line for name in ours)
    ]
    assert len(tried) == 4
    for line in tried:
        done = ran([sys.executable, *shlex.split(line)[1:]], there, timeout=900)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert (copy / "runs" / "log_relu" / "figures" / "encoder_alignment.svg").exists()
