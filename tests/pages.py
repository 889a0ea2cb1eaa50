"""The pages of the project, READMEs and those of docs/: their blocks, and what happens when a reader types them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from command_line import ROOT, environment, shared_cache

SITE = [*(ROOT / "docs").rglob("*.md")]
PAGES = [
    *ROOT.glob("*.md"),
    *(page for room in ("harvest", "sae_jax", "analysis") for page in (ROOT / room).rglob("*.md")),
    *SITE,
]
PROGRAM = r"(?:python main\.py|sae-jax) "
BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.M | re.S)

Home = tuple[Path, dict[str, str]]  # a working folder; an environment with its own home and cache, without a hub


def blocks(text: str, language: str = "") -> list[str]:
    return [content for its_language, content in BLOCK.findall(text) if its_language == language]


def without_blocks(text: str) -> str:
    return BLOCK.sub("", text)


def typed_lines(block: str) -> list[str]:
    """The commands of the program in a block, without comments."""
    found = re.findall(rf"^{PROGRAM}.*$", block.replace(" \\\n", " "), re.M)
    return [re.split(r"\s+# ", line)[0] for line in found]


def command_lines(page: str) -> list[str]:
    """The commands of the program in all blocks and sentences of a page."""
    in_blocks = [line for _, content in BLOCK.findall(page) for line in typed_lines(content)]
    return in_blocks + re.findall(rf"(?<=`){PROGRAM}[^`]+(?=`)", without_blocks(page))


def words_of(line: str) -> list[str]:
    """The words of a command after the name of the program."""
    return shlex.split(re.sub(f"^{PROGRAM}", "", line))


def new_home(tmp_path_factory) -> Home:
    home = tmp_path_factory.mktemp("home")
    own = {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return home, os.environ | environment(shared_cache(tmp_path_factory)) | own


def ran(command: list, at_home: Home, **options) -> subprocess.CompletedProcess:
    home, env = at_home
    settings = {"cwd": home, "env": env, "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(command, **settings | options)


def typed(line: str, at_home: Home, **options) -> subprocess.CompletedProcess:
    """Run a command of a page unchanged."""
    program = ["-m", "sae_jax"] if line.startswith("sae-jax") else [ROOT / "main.py"]
    return ran([sys.executable, *program, *words_of(line)], at_home, **options)


def pasted(code: str, at_home: Home, **options) -> tuple[str, str]:
    """(standard output, standard error without prompts) after all lines of the code were typed into Python."""
    done = ran([sys.executable, "-q", "-i"], at_home, input=code, **options)
    return done.stdout, done.stderr.replace(">>> ", "").replace("... ", "")
