"""What `--help` prints: all commands in groups, with one line each. Imports none of them."""

from __future__ import annotations

import ast
import shutil
from importlib.resources import files
from textwrap import fill

from analysis.cli import COMMANDS, GROUPS
from analysis.cli.flags import pasted

ABOUT = """\
usage: python main.py [COMMAND] ...

sae-jax trains populations of sparse autoencoders on a language model's activations and analyses their features.
Flags without a command train: `python main.py --activation topk` is `python main.py train --activation topk`.
Without any flag, one autoencoder is trained with the default settings.
"""
MORE = """\
`python main.py COMMAND --help` describes a command and all of its flags. `--version` prints the version.
To complete commands and flags in bash with the Tab key: eval "$(register-python-argcomplete sae-jax)"
"""


def overview() -> str:
    width = shutil.get_terminal_size().columns
    indent = max(map(len, COMMANDS)) + 4
    lines = [pasted(ABOUT)]
    for group, commands in GROUPS.items():
        lines.append(f"{group}:")
        for command in commands:
            start = f"  {command}".ljust(indent)
            lines.append(fill(start + summary(command), max(width, 60), subsequent_indent=" " * indent))
        lines.append("")
    return "\n".join([*lines, pasted(MORE)]).rstrip()


def summary(command: str) -> str:
    """The first line of the docstring of a command's module."""
    source = (files("analysis.cli") / f"{command.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
