"""The terminal face of a run: progress redrawn in place, plain lines in a log, and the box of results at the end.

It computes nothing and knows neither torch nor jax: what it draws is handed to it. Names, ids and paths are printed
as they are. Where the stream is not a terminal it writes plain lines, with never an escape code among them.

    with Terminal() as terminal:
        terminal.say("no model hub in reach: using the bundled model")
        terminal.harvest_progress("harvest", done_tokens, total_tokens)
        terminal.training_progress(progress)
        terminal.results(results, run_dir)
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from textwrap import fill
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sae_jax.train import Progress

FRAME_SECONDS = 0.1  # a terminal is redrawn no more often
LINE_SECONDS = 3.0  # a log gets a line no more often: n lines at once are followed by n times as long a silence
LOG_COLUMNS = 160  # no line of progress in a log is longer
CURVE_POINTS = 400  # a loss curve keeps at most so many points, over however many blocks
CURVE_COLUMNS = 16  # ids give way before the curve gets narrower
ID_COLUMNS = 12  # and the curve gives way before the ids get narrower
GAP = 2  # between columns


class LossCurve:
    """A loss over a run of any length, in bounded memory: when full, every second point goes."""

    def __init__(self) -> None:
        self._points: list[float] = []
        self._stride = 1
        self._seen = 0

    def append(self, loss: float) -> None:
        if self._seen % self._stride == 0:
            self._points.append(loss)
        self._seen += 1
        if len(self._points) == CURVE_POINTS:
            self._points = self._points[::2]
            self._stride *= 2

    def draw(self, columns: int, levels: str, gap: str) -> str:
        """A sparkline of at most `columns` characters, lowest to highest loss; `gap` where no loss was finite."""
        n = len(self._points)
        columns = min(columns, n)
        edges = [n * i // columns for i in range(columns + 1)] if columns > 0 else []
        heights = [_finite_mean(self._points[a:b]) for a, b in pairwise(edges)]
        finite = [h for h in heights if math.isfinite(h)]
        if finite and 0 < 10 * min(finite) < max(finite):  # more than a decade: logarithmic
            heights = [math.log(h) if math.isfinite(h) else h for h in heights]
            finite = [math.log(h) for h in finite]
        low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)

        def level(height: float) -> str:
            if not math.isfinite(height):
                return gap
            share = (height - low) / span if 0 < span < math.inf else 0.0
            return levels[round(share * (len(levels) - 1))]

        return "".join(map(level, heights))


class Terminal:
    """Shows a run on `stream` (standard output by default); a context manager, so that the cursor always comes back.

    With `quiet` it prints the run directory's path at the end and nothing else; a member that failed is named on
    standard error. `NO_COLOR` and `TERM=dumb` (then: plain lines) are respected.
    """

    def __init__(
        self, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        stream = sys.stdout if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._redraws = stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
        plain: dict[str, Any] = {} if self._redraws else {"color_system": None, "width": LOG_COLUMNS}
        self._console = Console(
            file=stream, force_terminal=self._redraws, force_jupyter=False, highlight=False, emoji=False, **plain
        )
        unicode = self._console.encoding.startswith("utf")
        self._levels, self._no_level, self._ellipsis = ("▁▂▃▄▅▆▇█", "×", "…") if unicode else ("_.:-=+*#", "x", "..")
        self._curves: defaultdict[str, LossCurve] = defaultdict(LossCurve)
        self._phase: str | None = None
        self._first: tuple[float, int] = (0.0, 0)  # when the phase began, and with how many tokens already there
        self._live: Live | None = None
        self._frame: Callable[[int | None], RenderableType] | None = None  # what is on screen, for a number of lines
        self._unwritten: list[str] = []  # what a log was spared so far
        self._next = -math.inf

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave_phase()

    def say(self, text: str) -> None:
        """A line that stays, above whatever is being redrawn."""
        if self._quiet:
            return
        if self._redraws:  # wrapped between words only: a long path is left to the terminal, and so can be copied
            columns = self._console.width
            text = "\n".join(
                line
                if cell_len(line) <= columns
                else fill(line, columns, break_long_words=False, break_on_hyphens=False)
                for line in text.splitlines()
            )
        self._console.print(self._literal(text), soft_wrap=True)

    def harvest_progress(self, phase: str, done_tokens: int, total_tokens: int) -> None:
        """A bar with tokens/s (since the phase's first call) and time left."""
        if self._quiet:
            return
        if self._enter_phase(phase):
            self._first = (self._clock(), done_tokens)
        seconds, done_here = self._clock() - self._first[0], done_tokens - self._first[1]
        rate = done_here / seconds if seconds > 0 and done_here > 0 else math.nan
        share = done_tokens / total_tokens if total_tokens else 1.0
        left = _left(share, (total_tokens - done_tokens) / rate)
        counts = [f"{done_tokens:,}/{total_tokens:,} tokens", _rate(rate, "tokens/s")]

        def frame(_: int | None) -> RenderableType:
            return self._heading(phase, share, left, counts)

        self._show(frame, [_head(phase, share, left, counts)], last=done_tokens >= total_tokens)

    def training_progress(self, progress: Progress) -> None:
        """Step, rows/s and time left; per member loss, explained variance, L0, dead and the loss so far."""
        if self._quiet:
            return
        for member_id, metrics in progress.members.items():
            self._curves[member_id].append(float(metrics.get("loss", math.nan)))
        self._enter_phase("train")
        share = progress.step / progress.total_steps if progress.total_steps else 1.0
        left = _left(share, progress.seconds_left)
        counts = [f"step {progress.step:,}/{progress.total_steps:,}", _rate(progress.rows_per_second, "rows/s")]
        if progress.data_wait >= 0.05:
            counts.append(f"waiting for data {_percent(progress.data_wait)}")

        def frame(height: int | None) -> RenderableType:
            return Group(self._heading("train", share, left, counts), "", self._members(progress.members, height))

        lines = self._log_lines(_head("train", share, left, counts), progress.members)
        self._show(frame, lines, last=progress.step >= progress.total_steps)

    def results(self, results: dict[str, Any], run_dir: str) -> None:
        """The double-line box EXPERIMENT RESULTS from the content of results.json, and where the results lie."""
        self._leave_phase()
        failed = [member for member in results["members"] if member.get("failed")]
        if self._quiet:
            for member in failed:
                print(f"{self._literal(_named(member))}: {_failure(member)}", file=sys.stderr)
            self._console.print(self._literal(run_dir), soft_wrap=True)
            return
        inside = self._console.width - 4
        sections: list[RenderableType] = [self._results_table(results["members"], inside)]
        if failed:
            sections.append(self._pairs([(_named(m), _failure(m)) for m in failed], inside, style="red"))
        where = self._literal(run_dir).plain
        facts = [("model", _model(results["model"])), ("backend", results["backend"])]
        facts += [("time", _times(results["timing"])), ("results", self._shorten(where, inside - len("results") - GAP))]
        sections.append(self._pairs(facts, inside))
        frame = Table(box=box.DOUBLE, show_lines=True, border_style="cyan")
        frame.add_column(Text("EXPERIMENT RESULTS", style="bold", justify="center"))
        for section in sections:
            frame.add_row(section)
        self._console.print(frame)
        if facts[-1][1] != where:  # the box had no room for it; nobody shall have to guess a path
            self._console.print(self._literal(f"results: {run_dir}"), soft_wrap=True)

    # Phases: each leaves its last frame, or line, behind.

    def _enter_phase(self, phase: str) -> bool:
        if phase == self._phase:
            return False
        self._leave_phase()
        self._phase, self._next = phase, -math.inf
        return True

    def _leave_phase(self) -> None:
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
                # What others print goes above the live region, unless it goes to another place than the terminal.
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
        bar.add_row(Text(self._literal(phase).plain, style="bold"), done, _percent(share).rjust(4), left.rjust(10))
        return Group(bar, Text("   ".join(filter(None, counts)), style="dim", no_wrap=True))

    def _members(self, members: dict[str, dict[str, float]], height: int | None) -> RenderableType:
        """The members' table in at most `height` lines, heading included: those without room are summed up."""
        room = len(members) if height is None else max(height - 4, 1)
        shown = list(members) if len(members) <= room else list(members)[: max(room - 1, 1)]
        rows = [[member_id, *_numbers(members[member_id])] for member_id in shown]
        header = ["member", "loss".rjust(9), "EV".rjust(7), "L0".rjust(7), "dead".rjust(6)]
        curves = [self._curves[member_id] for member_id in shown]
        table = self._table(header, rows, self._console.width, curves)
        if len(shown) == len(members):
            return table
        hidden = [metrics for member_id, metrics in members.items() if member_id not in shown]
        return Group(table, Text(f"and {len(hidden)} more: {_ranges(hidden)}", style="dim", no_wrap=True))

    def _table(
        self, header: list[str], rows: list[list[str]], columns: int, curves: Sequence[LossCurve] | None = None
    ) -> Table:
        """Rows of an id and numbers. The id gets what the numbers (and the curve) leave, the curve the rest."""
        ids = [self._literal(row[0]).plain for row in rows]
        widths = [max(map(len, cells)) for cells in zip(*(row[1:] for row in [header, *rows]), strict=True)]
        free = columns - sum(widths) - GAP * len(widths)
        wanted = max(map(cell_len, [header[0], *ids]))
        least = CURVE_COLUMNS + GAP if curves is not None else 0
        id_columns = min(wanted, max(free - least, ID_COLUMNS))
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
        header, rows = ["member", "loss (mse)", "sparsity", "expl. var.", "L0 (asked)", "dead"], []
        for member in members:
            asked = member.get("k") or member.get("target_l0")
            metrics = member.get("metrics") or {}
            numbers = _numbers({**metrics, "loss": metrics.get("mse", math.nan)})
            loss, variance, l0, dead = (number.strip() for number in numbers)
            loss = "failed" if member.get("failed") else loss
            sparsity = _percent_of(metrics.get("sparsity", math.nan), digits=2)
            rows.append([_named(member), loss, sparsity, variance, f"{l0} ({asked:g})" if asked else l0, dead])
        return self._table(header, rows, columns)

    def _pairs(self, pairs: list[tuple[str, str]], columns: int, style: str = "") -> Table:
        table = Table.grid(padding=(0, GAP))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(style=style, overflow="fold")
        for name, value in pairs:
            table.add_row(Text(self._shorten(self._literal(name).plain, columns // 2)), self._literal(value))
        return table

    def _log_lines(self, head: str, members: dict[str, dict[str, float]]) -> list[str]:
        """One member stands in the line itself, several below it."""
        texts = [
            "loss {}  ev {}  l0 {}  dead {}".format(*map(str.strip, _numbers(metrics))) for metrics in members.values()
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
        """The text as it is: no markup, no control characters, nothing that the stream cannot encode."""
        visible = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.expandtabs())
        return Text(visible.encode(self._console.encoding, "replace").decode(self._console.encoding))

    def _shorten(self, text: str, columns: int) -> str:
        """At most `columns` wide, the middle left out: ids and paths differ at their ends."""
        if cell_len(text) <= columns:
            return text
        keep = max(columns - len(self._ellipsis), 0)
        head, tail = set_cell_size(text, keep // 2), set_cell_size(text[::-1], keep - keep // 2)[::-1]
        return head + self._ellipsis + tail


def _finite_mean(losses: list[float]) -> float:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan


def _numbers(metrics: dict[str, float]) -> list[str]:
    """Loss, explained variance, L0 and dead fraction, in widths that hold still while a run goes on."""
    loss, variance, l0, dead = (
        float(metrics.get(name, math.nan)) for name in ("loss", "explained_variance", "l0", "dead_fraction")
    )
    loss_text = f"{loss:.4g}" if abs(loss) >= 1e4 or 0 < abs(loss) < 1e-3 else f"{loss:#.4g}".rstrip(".")
    variance_text = f"{variance:.3f}" if abs(variance) < 100 else f"{variance:.2g}"
    return [loss_text.rjust(9), variance_text.rjust(7), f"{l0:.1f}".rjust(7), _percent_of(dead, digits=1).rjust(6)]


def _ranges(members: list[dict[str, float]]) -> str:
    names = {"loss": ("loss", "{:.4g}"), "explained_variance": ("EV", "{:.3f}"), "l0": ("L0", "{:.1f}")}
    parts = []
    for name, (label, number) in names.items():
        finite = [m[name] for m in members if math.isfinite(m.get(name, math.nan))]
        if finite:
            parts.append(f"{label} {number.format(min(finite))} to {number.format(max(finite))}")
    return "  ".join(parts)


def _percent(share: float) -> str:
    """Rounded down: 100% means done."""
    return f"{math.floor(100 * share)}%"


def _percent_of(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else "nan"


def _rate(rate: float, unit: str) -> str:
    """Nothing where the rate is not known yet."""
    if not math.isfinite(rate):
        return ""
    return f"{rate:,.0f} {unit}" if rate >= 10 else f"{rate:.1f} {unit}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _left(share: float, seconds: float) -> str:
    if share >= 1:
        return "done"
    return f"{_duration(seconds)} left" if math.isfinite(seconds) else ""


def _head(phase: str, share: float, left: str, counts: list[str]) -> str:
    return "  ".join(filter(None, [phase, counts[0], _percent(share), *counts[1:], left]))


def _named(member: dict[str, Any]) -> str:
    """The id, with the activation function before it where it does not say which."""
    member_id, activation = str(member["id"]), str(member["activation"])
    return member_id if activation in member_id else f"{activation} {member_id}"


def _failure(member: dict[str, Any]) -> str:
    return f"stopped at step {member['failed']['step']:,}: {member['failed']['reason']}"


def _model(model: dict[str, Any]) -> str:
    return f"{model['name']} (fallback: no model hub in reach)" if model["fell_back"] else str(model["name"])


def _times(timing: dict[str, float | None]) -> str:
    parts = [
        f"{phase} {_duration(seconds)}"
        for phase in ("harvest", "training", "evaluation")
        if (seconds := timing.get(f"{phase}_seconds")) is not None
    ]
    rate = _rate(timing.get("rows_per_second") or math.nan, "rows/s")
    return ", ".join(parts) + (f" ({rate})" if rate else "")
