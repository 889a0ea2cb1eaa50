"""How a notebook shows a run: as plain text, or as an HTML table. Names come from files and are therefore escaped."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

from analysis.runs.best_member import best_of_results
from analysis.runs.finished import FinishedRun
from analysis.runs.undefined import why_undefined
from analysis.ui.terminal.live import BEST, Terminal
from analysis.ui.terminal.wording import failure_text, member_name, model_text, results_cells

HIGHEST = "30em"  # a higher table scrolls


@dataclass(frozen=True, repr=False)
class ShownRun(FinishedRun):
    """A finished run that prints as its box of results and that a notebook shows as a table of its members."""

    def __repr__(self) -> str:
        stream = StringIO()
        Terminal(stream=stream).results(self.results, str(self.path))
        return stream.getvalue().rstrip()

    def _repr_html_(self) -> str:
        return run_html(self.results, str(self.path))


def run_html(results: dict[str, Any], path: str) -> str:
    header, rows = results_cells(results["members"])
    best = best_of_results(results["members"])
    starred = member_name(best) if best else None
    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)]
    for name, *numbers in rows:
        cells = "".join(f"<td>{escape(number)}</td>" for number in numbers)
        lines.append(f'<td style="text-align: left">{escape(name)}{" ★" if name == starred else ""}</td>{cells}')
    notes = [f"{member_name(m)}: {failure_text(m)}" for m in results["members"] if m.get("failed")]
    measured = [(member_name(m), why_undefined(m.get("metrics") or {})) for m in results["members"]]
    notes += [f"{name}: {why}" for name, why in measured if why]
    notes += [f"★ {BEST}"] if best else []
    return (
        f"<b>{escape(path)}</b>: {len(rows)} dictionaries of {escape(model_text(results['model']))}"
        f'<div style="max-height: {HIGHEST}; overflow: auto"><table style="text-align: right">'
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</table></div>"
        + "<br>".join(map(escape, notes))
    )
