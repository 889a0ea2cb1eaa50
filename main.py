"""The command line: `python main.py COMMAND ...` runs analysis/cli/COMMAND.py. Flags without a command train.

`python main.py --help` lists all commands. `python main.py COMMAND --help` lists the flags of a command.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from importlib import import_module
from importlib.metadata import version

try:
    from analysis.cli import COMMANDS
    from analysis.cli.completion import ASKED, complete_line
    from analysis.cli.exit_status import exit_status, leave_to_system
    from analysis.cli.overview import overview
    from harvest.errors import InputError
    from harvest.flags import nearest
except ModuleNotFoundError as missing:
    sys.exit(f"error: the package {missing.name} is not installed: run `pip install -e .` in sae-jax's folder")


def command_in(argv: list[str]) -> str:
    """The command that the arguments begin with: training, if they begin with none."""
    return argv[0] if argv and argv[0] in COMMANDS else "train"


def main(argv: list[str]) -> None:
    """Run a command with its flags. Exceptions are passed on to the caller."""
    if argv in (["--help"], ["-h"]):
        print(overview())
    elif argv == ["--version"]:
        print(f"sae-jax {version('sae-jax')}")
    elif argv and argv[0] not in COMMANDS and not argv[0].startswith("-"):
        raise InputError(f"{argv[0]}: there is no such command{nearest(argv[0], COMMANDS)} (--help lists all commands)")
    else:
        command = command_in(argv)
        module = import_module(f"analysis.cli.{command.replace('-', '_')}")
        module.run(argv[1:] if argv and argv[0] == command else argv)


def run_as_command(argv: list[str]) -> int:
    """Run a command and return its exit status. Failures are printed as messages instead of being raised."""
    return exit_status(command_in(argv), main, argv)


def in_cluster() -> bool:
    """Return whether JAX still counts this process as one of several."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def start() -> None:
    """Run the command that the process was started with, and end the process."""
    if ASKED in os.environ:
        complete_line(main)
    status = run_as_command(sys.argv[1:])
    leave_to_system()
    waits = any(thread.name == "wandb" for thread in threading.enumerate())  # W&B's handler would wait for it forever
    if not waits and not in_cluster():  # that of JAX would wait for the other processes
        atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status)  # because torch, JAX and the renderer of figures need seconds to take themselves apart


if __name__ == "__main__":
    start()
