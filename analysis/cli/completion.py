"""Shell completion by argcomplete, which starts the program with the line that is being typed in its environment."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from analysis.cli import COMMANDS
from harvest.errors import InputError

ASKED = "_ARGCOMPLETE"  # set by the shell: the number of words that start the program


def complete_line(run: Callable[[list[str]], None]) -> None:
    """Print the completions for the line in the environment, and end the process.

    After the name of a command, `run` is called with it: its parser completes the rest.
    """
    from argcomplete import split_line  # type: ignore[attr-defined]

    start = int(os.environ[ASKED])
    words = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3][start:]
    if words and words[0] in COMMANDS:
        os.environ[ASKED] = str(start + 1)
        return run([words[0]])
    parser = import_module("analysis.cli.train").build_parser()
    parser.add_argument("command", nargs="?", choices=COMMANDS)
    complete(parser)


def complete(parser: ArgumentParser) -> None:
    """If the shell asks for completions, print those of a parser and end the process."""
    if ASKED in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def completer_of(name: str, choices: tuple[str, ...]) -> Callable[..., list[str]] | None:
    """The function that completes the values of a flag; None for file names, which argcomplete completes itself."""
    if name == "member":
        return lambda parsed_args, **_: ["best", *members_of(vars(parsed_args))]
    return (lambda **_: list(choices)) if choices else None


def members_of(values: dict[str, Any]) -> list[str]:
    """The ids of the members of the run that is on the line."""
    from analysis.runs.finished import FinishedRun

    try:
        return list(FinishedRun.open(Path(values.get("run") or values["source"])).members)
    except (InputError, KeyError, TypeError):
        return []
