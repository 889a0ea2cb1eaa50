"""The files of a report: one HTML file, and its figures in the runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analysis.plots.style import save
from analysis.plots.theme import figure_html
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
    drawn = [(report.parts[0], report.frontier)] if report.frontier else []
    drawn += [(part, figure) for part in report.parts for of in part.figures.values() for figure in of]
    kept = {part.run.path: can_be_kept(part.run.path, say) for part in report.parts}
    html = {}
    for number, (part, figure) in enumerate(drawn):
        if kept[part.run.path]:
            save(figure.figure, part.run.path / "figures" / figure.name)
        html[figure] = figure_html(figure.figure, f"figure-{number}", figure.alt)
        on_progress("figures", number + 1, len(drawn))
    content = page(report, html).encode()
    write_atomically(to, lambda file: file.write(content))
    return [path / "figures" for path, is_kept in kept.items() if is_kept]
