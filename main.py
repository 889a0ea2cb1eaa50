"""The command line: `python main.py COMMAND ...` runs analysis/cli/COMMAND.py. Flags without a command train.

`python main.py --help` lists the flags of training. `python main.py COMMAND --help` lists those of a command.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module

from analysis.cli import COMMANDS
from analysis.cli.exit_status import exit_status, leave_to_system
from harvest.errors import InputError


def command_in(argv: list[str]) -> str:
    """The command that the arguments begin with, or "" for training, which has no command name."""
    return argv[0] if argv and argv[0] in COMMANDS else ""


def main(argv: list[str]) -> None:
    """Run a command with its flags. Exceptions are passed on to the caller."""
    command = command_in(argv)
    if argv and not command and not argv[0].startswith("-"):
        raise InputError(f"{argv[0]}: there is no such command: give one of {', '.join(COMMANDS)}, or flags to train")
    module = import_module(f"analysis.cli.{command.replace('-', '_') or 'train'}")
    module.run(argv[1:] if command else argv)


def run_as_command(argv: list[str]) -> int:
    """Run a command and return its exit status. Failures are printed as messages instead of being raised."""
    return exit_status(command_in(argv), main, argv)


if __name__ == "__main__":
    status = run_as_command(sys.argv[1:])
    leave_to_system()
    if any(thread.name == "wandb" for thread in threading.enumerate()):
        os._exit(status)  # a W&B thread hangs, and the exit handler of W&B would wait for it forever
    sys.exit(status)
