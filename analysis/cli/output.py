"""Where a command writes: tables and progress on the screen, and all numbers to a file or to standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.ui.terminal.live import Terminal
from harvest.files import write_json
from harvest.flags import Flags, flag

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True)
class Quiet(Flags):
    """The flag of commands that show something."""

    quiet: bool = flag(False, "print no progress and no tables; what trains prints the path of its run")

    @contextmanager
    def terminal(self) -> Iterator[Terminal]:
        with Terminal(quiet=self.quiet) as terminal:
            yield terminal


@dataclass(frozen=True)
class Output(Quiet):
    """The flags of commands that compute something."""

    json: Path | None = flag(
        None,
        "also write all numbers to this JSON file; with - to standard output, and all else to standard error",
        written=True,
    )

    @contextmanager
    def terminal(self) -> Iterator[Terminal]:
        """A terminal. Until the context ends, nothing is written to standard output if the numbers go there."""
        stream = sys.stderr if self.json == STANDARD_OUTPUT else sys.stdout
        with redirect_stdout(stream), Terminal(quiet=self.quiet, stream=stream) as terminal:
            yield terminal

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the numbers to where they were asked for. Non-finite values raise ValueError."""
        if self.json == STANDARD_OUTPUT:
            print(json.dumps(record, indent=1, allow_nan=False))
        elif self.json:
            write_json(self.json, record)
