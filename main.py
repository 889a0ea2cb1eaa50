"""The command line: `python main.py COMMAND ...` runs analysis/cli/COMMAND.py; flags alone train.

`python main.py --help` lists the flags of training, `python main.py COMMAND --help` those of a command.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module

from analysis.cli.exit_status import exit_status, leave_to_system

COMMANDS = (  # each has a file in analysis/cli with `run(argv)`
    "attribute",
    "dashboard",
    "evaluate",
    "export",
    "find-feature",
    "frontier",
    "report",
    "saebench",
    "show",
    "steer",
    "study",
)


def command_in(argv: list[str]) -> str:
    """The command that comes first, or "" for training, which has no name."""
    return argv[0] if argv and argv[0] in COMMANDS else ""


def main(argv: list[str]) -> None:
    """Run a command, with its flags. Raises what went wrong."""
    command = command_in(argv)
    module = import_module(f"analysis.cli.{command.replace('-', '_') or 'train'}")
    module.run(argv[1:] if command else argv)


def run_as_command(argv: list[str]) -> int:
    """Run a command as a process does: messages in place of exceptions, and the exit status."""
    return exit_status(command_in(argv), main, argv)


if __name__ == "__main__":
    status = run_as_command(sys.argv[1:])
    leave_to_system()
    if any(thread.name == "wandb" for thread in threading.enumerate()):
        os._exit(status)  # it is stuck or slow, and what W&B does at an exit would wait for it without an end
    sys.exit(status)
