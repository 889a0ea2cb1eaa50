"""The files of a report: one HTML file, and its figures in the runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from analysis.plots.style import save
from analysis.runs.finished import can_be_kept
from analysis.ui.report.contents import Report
from analysis.ui.report.html import page
from harvest.files import write_atomically


def write_report(
    report: Report, to: Path, on_progress: Callable[[str, int, int], None], say: Callable[[str], None]
) -> list[Path]:
    """Write the page to the file `to`, and the figures of each run to RUN/figures. Returns these folders.

    Figures of a run that cannot be written to are only in the page.
    """
    drawn = [(part, figure) for part in report.parts for figures in part.figures.values() for figure in figures]
    pictures, folders, kept = {}, {}, []
    with TemporaryDirectory() as spare:
        for number, run in enumerate(part.run.path for part in report.parts):
            folders[run] = Path(spare) / str(number)
            if can_be_kept(run, say):
                folders[run] = run / "figures"
                kept.append(folders[run])
        if report.frontier:
            folder = folders[report.parts[0].run.path]
            pictures[report.frontier] = save(report.frontier.figure, folder / report.frontier.name)
        for done, (part, figure) in enumerate(drawn, 1):
            pictures[figure] = save(figure.figure, folders[part.run.path] / figure.name)
            on_progress("figures", done, len(drawn))
        html = page(report, pictures).encode()
    write_atomically(to, lambda file: file.write(html))
    return kept
