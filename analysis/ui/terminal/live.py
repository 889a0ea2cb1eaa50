"""Terminal output of a run: progress that is redrawn in place, and a box of results at the end.

This module computes nothing and imports neither torch nor jax. Names, ids and paths are printed as they are. If the
stream is not a terminal, the output is plain lines without escape codes.

    with Terminal() as terminal:
        terminal.say("the hub cannot be reached: using the bundled model")
        terminal.progress("harvest", done_tokens, total_tokens)
        terminal.training_progress(progress)
        terminal.results(results, run_dir)
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import add
from textwrap import fill
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleDimensions, ConsoleOptions, Group, RenderableType
from rich.filesize import decimal as size_text
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from analysis.runs.best_member import L0_TOLERANCE, best_member, best_of_results
from analysis.runs.undefined import why_undefined
from analysis.ui.terminal.scatter import scatter
from analysis.ui.terminal.sparkline import LossCurve
from analysis.ui.terminal.wording import (
    duration_text,
    failure_text,
    head_line,
    left_text,
    member_name,
    model_text,
    number_cells,
    percent_done,
    ranges_text,
    rate_text,
    results_cells,
    share_text,
    times_text,
    told_apart,
    visible,
)

if TYPE_CHECKING:
    from sae_jax.cost import Plan
    from sae_jax.training.progress import Progress

FRAME_SECONDS = 0.1  # shortest time between two redraws of a terminal
LINE_SECONDS = 3.0  # shortest average time between two lines of a log: n lines at once are followed by n times as long
UNITS = {
    "features": "rows",
    "comparison": "pairs",
    "emergence": "dictionaries",
}  # units in which phases count their progress
UNITS |= {"ablation": "windows", "contexts": "rows", "pages": "features", "examples": "members", "figures": "figures"}
LOG_COLUMNS = 160  # longest line of progress in a log
CURVE_COLUMNS = 16  # ids are shortened before the curve gets narrower than this
SCATTER_COLUMNS = 100
BEST = f"highest explained variance, with an L0 within {L0_TOLERANCE:.0%} of the target"
ID_COLUMNS = 12  # the curve is shortened before the ids get narrower than this
GAP = 2  # between columns
LEAST_COLUMNS, LEAST_LINES = 40, 5  # on a narrower screen the lines wrap


class Screen(Console):
    """A console that removes control characters from the text it prints and has a minimum size."""

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        width, height = super().size
        return ConsoleDimensions(max(width, LEAST_COLUMNS), max(height, LEAST_LINES))

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # instead of rich's SystemExit, so that the command can report it

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


class Terminal:
    """Shows a run on `stream`, by default the standard output. A context manager, so that the cursor is restored.

    If `quiet`, only the run directory's path is printed at the end, and failed members on standard error. `NO_COLOR`
    is respected. With `TERM=dumb` the output is plain lines.
    """

    def __init__(
        self, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        stream = sys.stdout if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._redraws = stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
        plain: dict[str, Any] = {} if self._redraws else {"color_system": None, "width": LOG_COLUMNS}
        self._console = Screen(
            file=stream,
            force_terminal=self._redraws,
            force_jupyter=False,
            highlight=False,
            emoji=False,
            markup=False,
            **plain,
        )
        unicode = self._console.encoding.startswith("utf")
        self._levels, self._no_level, self._ellipsis = ("▁▂▃▄▅▆▇█", "×", "…") if unicode else ("_.:-=+*#", "x", "..")
        self._best = " ★" if unicode else " *"
        self._curves: defaultdict[str, LossCurve] = defaultdict(LossCurve)
        self._phase: str | None = None
        self._first: tuple[float, int] = (0.0, 0)  # the time at which the phase began, and the count at that time
        self._live: Live | None = None
        self._frame: Callable[[int | None], RenderableType] | None = None  # draws the screen in a number of lines
        self._unwritten: list[str] = []  # the latest lines that came too early for the log
        self._next = -math.inf

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave_phase()

    def say(self, text: str) -> None:
        """Print a message that stays on screen, above the progress that is being redrawn."""
        if self._quiet:
            return
        if self._redraws:  # wrapped between words only, so that a long path can be copied from the terminal
            columns = self._console.width
            text = "\n".join(
                line
                if cell_len(line) <= columns
                else fill(line, columns, break_long_words=False, break_on_hyphens=False)
                for line in text.splitlines()
            )
        self._console.print(self._literal(text), soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """Print a finished table, as wide as the screen."""
        if not self._quiet:
            self._console.print(table)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show a phase's progress bar with its rate and time left. The rate counts from the phase's first call."""
        if self._quiet:
            return
        if self._enter_phase(phase):
            self._first = (self._clock(), done)
        seconds, done_here = self._clock() - self._first[0], done - self._first[1]
        rate = done_here / seconds if seconds > 0 and done_here > 0 else math.nan
        share = done / total if total else 1.0
        left = left_text(share, (total - done) / rate)
        unit = UNITS.get(phase, "tokens")
        counts = [f"{done:,}/{total:,} {unit}", rate_text(rate, f"{unit}/s")]

        def frame(_: int | None) -> RenderableType:
            return self._heading(phase, share, left, counts)

        self._show(frame, [head_line(phase, share, left, counts)], last=done >= total)

    def past(self, losses: Iterable[tuple[str, float]]) -> None:
        """Add earlier losses, as (member id, loss), to the curves of the members."""
        for member_id, loss in losses:
            self._curves[member_id].append(loss)

    def training_progress(self, progress: Progress) -> None:
        """Show step, rows/s and time left, and a table of the members' metrics and loss curves."""
        if self._quiet:
            return
        for member_id, metrics in progress.members.items():
            self._curves[member_id].append(float(metrics.get("loss", math.nan)))
        self._enter_phase("train")
        share = progress.step / progress.total_steps if progress.total_steps else 1.0
        left = left_text(share, progress.seconds_left)
        counts = [f"step {progress.step:,}/{progress.total_steps:,}", rate_text(progress.rows_per_second, "rows/s")]
        if progress.data_wait >= 0.05:
            counts.append(f"waiting for data {percent_done(progress.data_wait)}")

        def frame(height: int | None) -> RenderableType:
            return Group(self._heading("train", share, left, counts), "", self._members(progress, height))

        lines = self._log_lines(head_line("train", share, left, counts), progress.members)
        self._show(frame, lines, last=progress.step >= progress.total_steps)

    def results(self, results: dict[str, Any], run_dir: str) -> None:
        """Print the box EXPERIMENT RESULTS from the content of results.json, and the path of the results."""
        self.leave_phase()
        failed = [member for member in results["members"] if member.get("failed")]
        if self._quiet:
            for member in failed:
                print(self._literal(f"{member_name(member)}: {failure_text(member)}"), file=sys.stderr)
            self._console.print(self._literal(run_dir), soft_wrap=True)
            return
        inside = self._console.width - 4
        sections: list[RenderableType] = [self._results_table(results["members"], inside)]
        if failed:
            sections.append(self._pairs([(member_name(m), failure_text(m)) for m in failed], inside, style="red"))
        measured = [(member_name(m), why_undefined(m.get("metrics") or {})) for m in results["members"]]
        if unknown := [(name, why) for name, why in measured if why]:
            sections.append(self._pairs(unknown, inside))
        where = self._literal(run_dir).plain
        facts = [("model", model_text(results["model"])), ("backend", results["backend"])]
        if best_of_results(results["members"]):
            facts.insert(0, (self._best.strip(), BEST))
        facts += [
            ("time", times_text(results["timing"])),
            ("results", self._shorten(where, inside - len("results") - GAP)),
        ]
        sections.append(self._pairs(facts, inside))
        frame = Table(box=box.DOUBLE, show_lines=True, border_style="cyan")
        frame.add_column(Text("EXPERIMENT RESULTS", style="bold", justify="center"))
        for section in sections:
            frame.add_row(section)
        self._console.print(frame)
        if facts[-1][1] != where:  # the box had no room for the whole path
            self._console.print(self._literal(f"results: {run_dir}"), soft_wrap=True)

    def scatter(self, points: Sequence[tuple[str, float, float]], x_title: str, y_title: str) -> None:
        """Print points (kind, x, y) as a plot made of characters."""
        for line in scatter(points, x_title, y_title, min(self._console.width, SCATTER_COLUMNS)):
            self._console.print(self._literal(line), soft_wrap=True)

    def plan(self, plan: Plan) -> None:
        """Print the members of a dry run and their estimated costs."""
        header = ["member", "group", "parameters", "memory", "time"]
        rows = [
            [p.member.id, str(p.group), f"{p.parameters:,}", size_text(p.bytes), duration_text(p.seconds)]
            for p in plan.members
        ]
        self._console.print(self._table(header, rows, self._console.width))
        memory = size_text(sum(p.bytes for p in plan.members))
        groups = max(p.group for p in plan.members)
        self.say(
            f"{len(rows)} members in {groups} groups, {plan.steps:,} steps each: {memory} for weights and optimizer, "
            f"about {size_text(sum(plan.memory.host.values()))} in total, about {duration_text(plan.seconds)} "
            "on this CPU"
        )

    def evaluation(self, report: dict[str, Any]) -> None:
        """Print the table of `python main.py evaluate`: one row for each dictionary, intervals in parentheses."""
        from analysis.stats import FEWEST_DOCUMENTS

        self.leave_phase()
        header = ["dictionary", "expl. var.", "L0", "dead", "CE clean", "CE", "CE rec.", "KL rec."]
        rows = []
        for dictionary in report["dictionaries"]:
            metrics, intervals = dictionary["metrics"], dictionary["intervals"]
            _, variance, l0, dead = (number.strip() for number in number_cells(metrics))
            losses = [share_text(metrics.get(name)) for name in ("ce_clean", "ce_sae")]
            shares = [share_text(metrics.get(n), intervals.get(n)) for n in ("ce_recovered", "kl_recovered")]
            rows.append([dictionary["name"], variance, l0, dead, *losses, *shares])
        self._console.print(self._table(header, rows, self._console.width))
        documents = {entry["documents"] for entry in report["dictionaries"] if "documents" in entry}
        if documents and min(documents) < FEWEST_DOCUMENTS:
            self.say(f"no intervals: they need {FEWEST_DOCUMENTS} documents, and only {min(documents)} were measured")

    # Phases.

    def _enter_phase(self, phase: str) -> bool:
        if phase == self._phase:
            return False
        self.leave_phase()
        self._phase, self._next = phase, -math.inf
        return True

    def leave_phase(self) -> None:
        """End the phase. Its last frame or line stays visible."""
        if self._live is not None and self._frame is not None:
            self._live.update(self._frame(None))
            self._live.stop()
            self._console.line()
        self._write(self._unwritten)
        self._phase, self._live, self._frame, self._unwritten = None, None, None, []

    def _show(self, frame: Callable[[int | None], RenderableType], lines: list[str], last: bool) -> None:
        now = self._clock()
        self._frame = frame
        if not (last or now >= self._next):
            self._unwritten = [] if self._redraws else lines
            return
        if self._redraws:
            self._next = now + FRAME_SECONDS
            if self._live is None:
                # Rich redirects what others print to above the live region. A stream to a file is left alone.
                elsewhere = {f"redirect_{name}": getattr(sys, name).isatty() for name in ("stdout", "stderr")}
                self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop", **elsewhere)
                self._live.start()
            self._live.update(frame(self._console.height - 1), refresh=True)
        else:
            self._next = now + LINE_SECONDS * len(lines)
            self._write(lines)
            self._unwritten = []

    def _write(self, lines: list[str]) -> None:
        for line in lines:
            self.say(line)

    # Drawing.

    def _heading(self, phase: str, share: float, left: str, counts: list[str]) -> RenderableType:
        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            bar.add_column(ratio=ratio, no_wrap=True)
        done = ProgressBar(1.0, share, complete_style="cyan", finished_style="green")
        bar.add_row(Text(self._literal(phase).plain, style="bold"), done, percent_done(share).rjust(4), left.rjust(10))
        return Group(bar, Text("   ".join(filter(None, counts)), style="dim", no_wrap=True))

    def _members(self, progress: Progress, height: int | None) -> RenderableType:
        """The members' table in at most `height` lines, heading included. Members without room are summarized.

        The best member is always shown.
        """
        members, best = progress.members, best_member(progress.members, progress.l0_asked)
        room = len(members) if height is None else max(height - 4, 1)
        shown = list(members) if len(members) <= room else list(members)[: max(room - 1, 1)]
        if best and best not in shown:
            shown[-1] = best
        rows = [[member_id, *number_cells(members[member_id])] for member_id in shown]
        header = ["member", "loss".rjust(9), "EV".rjust(7), "L0".rjust(7), "dead".rjust(6)]
        curves = [self._curves[member_id] for member_id in shown]
        table = self._table(header, rows, self._console.width, curves, best)
        if len(shown) == len(members):
            return table
        hidden = [metrics for member_id, metrics in members.items() if member_id not in shown]
        return Group(table, Text(f"and {len(hidden)} more: {ranges_text(hidden)}", style="dim", no_wrap=True))

    def _table(
        self,
        header: list[str],
        rows: list[list[str]],
        columns: int,
        curves: Sequence[LossCurve] | None = None,
        best: str | None = None,
    ) -> Table:
        """A table with an id and numbers in each row. Ids get the width that numbers and curves leave free."""
        names = [self._literal(row[0]).plain for row in rows]
        stars = [self._best if row[0] == best else "" for row in rows]
        widths = [max(map(len, cells)) for cells in zip(*(row[1:] for row in [header, *rows]), strict=True)]
        free = columns - sum(widths) - GAP * len(widths)
        least = CURVE_COLUMNS + GAP if curves is not None else 0
        room = max(free - least, ID_COLUMNS)
        if max(map(cell_len, map(add, names, stars))) > room:
            names = told_apart(names)
        ids = list(map(add, names, stars))
        id_columns = min(max(map(cell_len, [header[0], *ids])), room)
        curve_columns = free - id_columns - GAP

        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
        table.add_column(header[0], width=id_columns, no_wrap=True)
        for name, width in zip(header[1:], widths, strict=True):
            table.add_column(name, width=width, justify="right", no_wrap=True)
        if curves is not None and curve_columns >= len("loss"):
            table.add_column("loss so far" if curve_columns >= 11 else "loss", width=curve_columns, no_wrap=True)
        for i, (member_id, row) in enumerate(zip(ids, rows, strict=True)):
            cells = [Text(self._shorten(member_id, id_columns)), *map(Text, row[1:])]
            if len(table.columns) > len(cells) and curves is not None:
                cells.append(Text(curves[i].draw(curve_columns, self._levels, self._no_level), style="cyan"))
            bad = any(cell.strip() in ("nan", "inf", "-inf", "failed") for cell in row[1:])
            table.add_row(*cells, style="red" if bad else "")
        return table

    def _results_table(self, members: list[dict[str, Any]], columns: int) -> Table:
        header, rows = results_cells(members)
        best = best_of_results(members)
        return self._table(header, rows, columns, best=member_name(best) if best else None)

    def _pairs(self, pairs: list[tuple[str, str]], columns: int, style: str = "") -> Table:
        table = Table.grid(padding=(0, GAP))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(style=style, overflow="fold")
        for name, value in pairs:
            table.add_row(Text(self._shorten(self._literal(name).plain, columns // 2)), self._literal(value))
        return table

    def _log_lines(self, head: str, members: dict[str, dict[str, float]]) -> list[str]:
        """Lines of a log: a single member's figures follow the heading, those of several are listed below it."""
        texts = [
            "loss {}  ev {}  l0 {}  dead {}".format(*map(str.strip, number_cells(metrics)))
            for metrics in members.values()
        ]
        before = f"{head}  |  " if len(members) == 1 else "  "
        ids = [self._literal(member_id).plain for member_id in members]
        rooms = [max(LOG_COLUMNS - len(before) - len(text) - 2, ID_COLUMNS) for text in texts]
        width = max(map(cell_len, ids), default=0)
        lines = [
            f"{before}{set_cell_size(self._shorten(member_id, room), min(width, room))}  {text}"
            for member_id, room, text in zip(ids, rooms, texts, strict=True)
        ]
        return lines if len(members) == 1 else [head, *lines]

    def _literal(self, text: str) -> Text:
        """The text without markup, control characters and characters that the stream cannot encode."""
        return Text(visible(text.expandtabs()).encode(self._console.encoding, "replace").decode(self._console.encoding))

    def _shorten(self, text: str, columns: int) -> str:
        """The text in at most `columns` columns. The middle is left out, because ids and paths differ at their ends."""
        if cell_len(text) <= columns:
            return text
        keep = max(columns - len(self._ellipsis), 0)
        head, tail = set_cell_size(text, keep // 2), set_cell_size(text[::-1], keep - keep // 2)[::-1]
        return head.removesuffix(self._ellipsis) + self._ellipsis + tail.removeprefix(self._ellipsis)
