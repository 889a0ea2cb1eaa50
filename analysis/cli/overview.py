"""What `--help` prints: all commands in groups, with one line each. Imports none of them."""

from __future__ import annotations

import ast
from importlib.resources import files

from analysis.cli import COMMANDS, GROUPS
from analysis.ui.terminal.wording import pasted

ABOUT = """\
usage: python main.py [COMMAND] ...

sae-jax trains populations of sparse autoencoders on a language model's
activations, and analyses their features. Flags without a command train: `train`
may be left out. Without flags, one autoencoder is trained with the defaults.
"""
MORE = """\
`python main.py COMMAND --help` describes all flags of a command; `--version`
prints the version. To complete commands and flags with the Tab key in bash:
eval "$(register-python-argcomplete sae-jax)"
"""


def overview() -> str:
    indent = max(map(len, COMMANDS)) + 4
    lines = [pasted(ABOUT)]
    for group, commands in GROUPS.items():
        lines.append(f"{group}:")
        for command in commands:
            lines.append(f"  {command}".ljust(indent) + summary(command))
        lines.append("")
    return "\n".join([*lines, pasted(MORE)]).rstrip()


def summary(command: str) -> str:
    """The first line of the docstring of a command's module."""
    source = (files("analysis.cli") / f"{command.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
