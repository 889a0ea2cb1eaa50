"""Write a run as one HTML file that opens offline, with its figures, its features in context and the answers.

python main.py report RUN                                   # RUN/report.html, its figures in RUN/figures
python main.py report RUN OTHER --control RUN_RANDOM --to sent.html
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from analysis.cli.flags import filled, parsed, place
from harvest.errors import InputError
from harvest.flags import Flags, flag
from harvest.request import default_cache_dir


@dataclass(frozen=True)
class Options(Flags):
    runs: tuple[Path, ...] = place("RUN", "directories of finished runs")
    to: Path | None = flag(None, "the file to write (default: report.html in the first run)", written=True)
    control: Path | None = flag(
        None, "a run on the same model with shuffled weights (trained with --control random-weights)"
    )
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations are kept")


def run(argv: list[str]) -> None:
    options = filled(Options, parsed("report", __doc__, argv, Options))

    from rich.filesize import decimal as size_text

    from analysis.plots.style import save
    from analysis.runs.finished import FinishedRun, can_be_kept
    from analysis.ui.report.contents import compose
    from analysis.ui.report.html import page
    from analysis.ui.terminal.live import Terminal
    from harvest.files import write_atomically

    runs = [FinishedRun.open(path) for path in options.runs]
    control = runs[0].opened_control(options.control) if options.control else None
    to = options.to or runs[0].path / "report.html"
    if to.is_dir() or not to.parent.is_dir():
        raise InputError(f"--to {to}: must be a file in an existing folder: create the folder, or give another file")
    if not os.access(to.parent, os.W_OK):
        raise InputError(f"{to.parent} cannot be written to: give another file by --to")
    with Terminal() as terminal, TemporaryDirectory() as spare:
        report = compose(runs, control, options.cache_dir, terminal.progress, terminal.say)
        drawn = [(part, figure) for part in report.parts for figures in part.figures.values() for figure in figures]
        pictures, folders = {}, {}
        for number, run in enumerate(part.run.path for part in report.parts):
            kept = can_be_kept(run, terminal.say)
            folders[run] = run / "figures" if kept else Path(spare) / str(number)
        if report.frontier:
            pictures[report.frontier] = save(report.frontier.figure, folders[runs[0].path] / report.frontier.name)
        for done, (part, figure) in enumerate(drawn, 1):
            pictures[figure] = save(figure.figure, folders[part.run.path] / figure.name)
            terminal.progress("figures", done, len(drawn))
        html = page(report, pictures).encode()
        write_atomically(to, lambda file: file.write(html))
        if kept_in := [str(folder) for folder in folders.values() if not folder.is_relative_to(spare)]:
            terminal.say(f"figures, as .png and .svg: {', '.join(kept_in)}")
        terminal.say(f"report: {to} ({size_text(len(html))})")
