"""The README does what it says: its Python is pasted line by line, its flags and commands are known."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, environment, shared_cache

import main

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
SHELL = [line.partition("  #")[0].strip() for line in re.findall(r"^python main\.py .*$", README, re.M)]


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    """(a folder to work in, an environment with a home and cache of its own, no hub in it)."""
    home = tmp_path_factory.mktemp("home")
    own = {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return home, os.environ | environment(shared_cache(tmp_path_factory)) | own


def ran(command: list, at_home, **options) -> subprocess.CompletedProcess:
    home, env = at_home
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def pasted(at_home) -> tuple[Path, str, str]:
    """(the folder, what was printed, what was complained) once every line was typed into Python, in order."""
    done = ran([sys.executable, "-q", "-i"], at_home, input="\n".join(PYTHON))
    return at_home[0], done.stdout, done.stderr.replace(">>> ", "").replace("... ", "")


@pytest.mark.slow
def test_the_page_is_pasted_line_by_line(pasted):
    home, out, complaints = pasted
    assert "Error" not in complaints and "Traceback" not in complaints, complaints
    assert (
        "SAE topk-f256-k32-lr1e-3-s0\n  topk, 256 → 256 features\n  reads blocks.2.hook_resid_pre of bundled\n" in out
    )
    assert "EXPERIMENT RESULTS" in out and "Context(before=" in out and "((100, 256), (256, 256))" in out
    assert {"densities.png", "densities.svg", "densities.pdf"} <= {path.name for path in (home / "runs").iterdir()}


@pytest.mark.slow
def test_what_it_has_trained_is_a_run_for_the_command_line(pasted, at_home):
    shown = ran([sys.executable, ROOT / "main.py", "show", "runs/mine", "--pareto"], at_home)
    assert shown.returncode == 0, shown.stderr
    assert "a jump_relu  b topk" in shown.stdout and "python main.py study runs/mine" in shown.stdout


@pytest.mark.parametrize("line", [line for line in SHELL if "--preset list" in line or "--dry-run" in line])
def test_what_trains_nothing_runs_as_it_stands(line, at_home):
    done = ran([sys.executable, ROOT / "main.py", *shlex.split(line)[2:]], at_home)
    assert done.returncode == 0, done.stderr
    assert "member" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in SHELL if "--n-samples 100 " in line])
def test_the_smoke_test_runs_as_it_stands(line, at_home):
    done = ran([sys.executable, ROOT / "main.py", *shlex.split(line)[2:]], at_home)
    assert done.returncode == 0 and "EXPERIMENT RESULTS" in done.stdout, done.stderr


def flags_of(command: str, capsys) -> set[str]:
    with pytest.raises(SystemExit) as done:
        main.run_as_command([*([command] if command else []), "--help"])
    assert done.value.code == 0
    return set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))


@pytest.mark.parametrize("line", SHELL)
def test_every_flag_of_a_command_is_known(line, capsys):
    first = shlex.split(line)[2]
    command = "" if first.startswith("-") or first == "..." else first
    assert command == "" or command in main.COMMANDS
    assert set(re.findall(r"--[a-z][a-z0-9-]*", line)) <= flags_of(command, capsys)


def test_every_command_and_every_flag_of_the_table_is_there(capsys):
    table = README[README.index("| flag | default | |") : README.index("## What comes out")]
    assert set(re.findall(r"`(--[a-z][a-z0-9-]*)", table)) <= flags_of("", capsys)
    assert {shlex.split(line)[2] for line in SHELL} >= set(main.COMMANDS)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
