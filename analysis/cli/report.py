"""Write a run as one HTML file that opens offline.

It has the figures, the features in context, and the answers of the study.

python main.py report RUN                                   # RUN/report.html, its figures in RUN/figures
python main.py report RUN OTHER --control RUN_RANDOM --to sent.html
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from analysis.cli.flags import filled, parsed, place
from analysis.cli.output import Quiet
from harvest.errors import InputError
from harvest.flags import DEVICE, WHERE, Flags, flag
from harvest.request import default_cache_dir


@dataclass(frozen=True)
class Options(Flags):
    runs: tuple[Path, ...] = place("RUN", "directories of finished runs")
    to: Path | None = flag(None, "the file to write (default: report.html in the first run)", written=True)
    control: Path | None = flag(
        None, "a run on the same model with shuffled weights (trained with --control random-weights)"
    )
    device: str = flag("auto", WHERE, DEVICE)
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations are kept")


def run(argv: list[str]) -> None:
    values = parsed("report", __doc__, argv, Options, Quiet)
    options = filled(Options, values)
    from rich.filesize import decimal as size_text

    from analysis.runs.finished import FinishedRun

    runs = [FinishedRun.open(path, options.device) for path in options.runs]
    control = runs[0].opened_control(options.control) if options.control else None
    to = options.to or runs[0].path / "report.html"
    if to.is_dir() or not to.parent.is_dir():
        raise InputError(f"--to {to}: must be a file in an existing folder: create the folder, or give another file")
    if not os.access(to.parent, os.W_OK):
        raise InputError(f"{to.parent} cannot be written to: give another file by --to")
    with filled(Quiet, values).terminal() as terminal:
        terminal.begin("loading the libraries")
        from analysis.ui.report.contents import compose
        from analysis.ui.report.files import write_report

        report = compose(runs, control, options.cache_dir, terminal.progress, terminal.say)
        if folders := write_report(report, to, terminal.progress, terminal.say):
            terminal.say(f"figures, as .png and .svg: {', '.join(map(str, folders))}")
        terminal.say(f"report: {to} ({size_text(to.stat().st_size)})")
