"""The figures of all parts of accelerator.py: measured in their time, written at once, shown as tables."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from harvest.files import write_json

LONGEST_TEXT = 300


class Figures:
    """A JSON file with facts about the machine and the lines of each part, written again after each measurement."""

    def __init__(self, path: Path, facts: dict):
        self.path, self.content = path, {**facts, "parts": {}}
        self.lock = threading.Lock()

    def write(self) -> None:
        with self.lock:
            write_json(self.path, self.content)

    def lines(self, name: str) -> list[dict]:
        """The lines of a part, none if it has not run."""
        return self.content["parts"].get(name, {}).get("lines", [])

    def run(self, name: str, seconds: float, measure_all: Callable[[Part], None]) -> Part:
        """Run one part within about so many seconds. An error is recorded, so that the next part can follow."""
        part = Part(self, name, seconds)
        try:
            measure_all(part)
        except Exception as error:
            part.facts["error"] = said(error)
        part.facts["seconds"] = round(time.perf_counter() - part.began, 1)
        self.write()
        return part


class Part:
    """The lines of one part. A line is only measured if there is time left for one as long as the longest so far."""

    def __init__(self, figures: Figures, name: str, seconds: float):
        self.figures, self.name, self.began = figures, name, time.perf_counter()
        self.ends, self.longest = self.began + seconds, 0.0
        self.facts: dict = {"lines": []}
        figures.content["parts"][name] = self.facts

    def left(self) -> float:
        return self.ends - time.perf_counter()

    def measure(self, line: dict, measured: Callable[[], dict]) -> None:
        """Add a line with the figures that `measured` returns, or with the reason why there are none."""
        began = time.perf_counter()
        if self.left() <= self.longest:
            self.add({**line, "skipped": "no time left"})
            return
        try:
            figures = measured()
        except Exception as error:
            figures = {"error": said(error)}
        self.longest = max(self.longest, time.perf_counter() - began)
        self.add({**line, **figures})

    def add(self, line: dict) -> None:
        with self.figures.lock:
            self.facts["lines"].append(line)
        self.figures.write()

    def table(self) -> str:
        """The lines as a Markdown table, with a column for each name that any line has."""
        lines = self.facts["lines"]
        names = list(dict.fromkeys(name for line in lines for name in line))
        rows = [names, ["---"] * len(names), *([shown(name, line.get(name)) for name in names] for line in lines)]
        error = [f"Stopped by an error: {self.facts['error']}"] if "error" in self.facts else []
        title = f"## {self.name} ({self.facts['seconds']:.0f} s)"
        return "\n".join([title, "", *("| " + " | ".join(row) + " |" for row in rows if names), *error, ""])


def said(error: Exception) -> str:
    """The text of an error in one line. The traceback goes to stderr."""
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:LONGEST_TEXT]


def shown(name: str, value: object) -> str:
    """A value for a table, in the unit that its name asks for."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    if "seconds" in name:
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    if "bytes" in name:
        return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"
    if name.startswith("share"):
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
