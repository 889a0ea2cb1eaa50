"""The reference of all commands and flags, in Markdown, from the parsers of the commands."""

from __future__ import annotations

import re
import sys
from argparse import Action
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from analysis.cli import COMMANDS
from analysis.cli.flags import Parser
from main import main


class Caught(Exception):
    """Carries a parser out of the command that was about to use it."""


def parser_of(command: str) -> Parser:
    """The parser of a command, which makes it only when it runs."""

    def caught(parser: Parser, argv: object) -> None:
        raise Caught(parser)

    # Help texts name the program as it was started.
    with patch.object(Parser, "parse_args", caught), patch.object(sys, "argv", ["sae-jax"]):
        try:
            main([command])
        except Caught as caught_parser:
            return caught_parser.args[0]
    raise AssertionError(f"{command} parses nothing")


def reference() -> str:
    """A section for each command, in the order of `sae-jax --help`."""
    return "\n".join(line for command in COMMANDS for line in section(command, parser_of(command)))


def section(command: str, parser: Parser) -> Iterator[str]:
    yield f"\n## {command}\n"
    for paragraph in (parser.description or "").strip().split("\n\n"):
        yield described(paragraph)
    yield f"```{{program}} sae-jax {command}\n```\n"
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions and group.title not in ("positional arguments", "options"):  # the titles that argparse gives
            yield f"**{(group.title or '').capitalize()}**\n"
        for action in actions:
            yield f"````{{option}} {signature(action)}\n{explained(action)}\n````\n"


def described(paragraph: str) -> str:
    """A paragraph of a help text: commands, tables and lists keep their lines."""
    keeps_lines = re.search(r"^(sae-jax|\s|\d\.)", paragraph, re.M)
    return f"```text\n{paragraph}\n```\n" if keeps_lines else marked(paragraph) + "\n"


def signature(action: Action) -> str:
    """The flag and its values, such as `--layer INT ...`."""
    name = action.metavar if not action.option_strings else action.option_strings[0]
    if not action.option_strings:
        return f"{name} ..." if action.nargs == "+" else f"{name}"
    if action.nargs == 0:
        return str(name)
    return f"{name} {action.metavar}{' ...' if action.nargs == '+' else ''}"


def explained(action: Action) -> str:
    return marked((action.help or "").replace(str(Path.home()), "~").replace("%%", "%"))


def marked(text: str) -> str:
    """The text with flags and paths as code, and without other marks of Markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    flags = r"(?<![\w-])(--[a-z][a-z0-9-]*|~/[\w./-]+)"
    return "".join(
        part if part.startswith("`") else re.sub(flags, r"`\1`", re.sub(r"([*_<\[\\])", r"\\\1", part))
        for part in parts
    )
