"""Terminal output of a run: progress that is redrawn in place, and a box of results at the end.

This module computes nothing and imports neither torch nor jax. Names, ids and paths are printed as they are. If the
stream is not a terminal, the output is plain lines without escape codes.

    with Terminal() as terminal:
        terminal.begin("loading the language model")
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
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.ui.terminal.fitted import Spare
from analysis.ui.terminal.pulse import Pulse, one_at_a_time
from analysis.ui.terminal.screen import ID_COLUMNS, LOG_COLUMNS, Screen
from analysis.ui.terminal.sparkline import LossCurve
from analysis.ui.terminal.wording import (
    duration_text,
    failure_text,
    folded,
    head_line,
    left_text,
    member_name,
    number_cells,
    percent_done,
    ranges_text,
    rate_text,
)
from sae_jax.best_member import best_members
from sae_jax.lookup import told_apart

if TYPE_CHECKING:
    from sae_jax.training.progress import Progress

FRAME_SECONDS = 0.1  # shortest time between two redraws of a terminal
BAR_COLUMNS = 28  # for a bar with its percentage and time left, at least
LINE_SECONDS = 2.0  # shortest average time between two lines of a log: n lines at once are followed by n times as long
# Units in which phases count their progress, if they are not tokens.
UNITS = {"features": "rows", "comparison": "pairs", "emergence": "dictionaries"}
UNITS |= {"probing": "probes", "absorption": "members", "spurious correlation": "members", "steering": "texts"}
UNITS |= {"import": "entries", "attribution": "features", "export": "members"}
UNITS |= {"ablation": "windows", "contexts": "rows", "pages": "features", "examples": "members", "figures": "figures"}


class Terminal:
    """Shows a run on `stream`, by default the standard output. A context manager, so that the cursor is restored.

    Inside of the context, a line says that work goes on whenever nothing else was shown for a while.

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
        self._console = Screen(stream, self._redraws)
        self._curves: defaultdict[str, LossCurve] = defaultdict(LossCurve)
        self._phase: str | None = None
        self._done = 0  # of the phase
        self._calls: list[tuple[float, int]] = []  # time and count of the first two calls of `progress` in the phase
        self._activity = "working"
        self._live: Live | None = None
        self._frame: Callable[[int | None], RenderableType] | None = None  # draws the screen in a number of lines
        self._unwritten: list[str] = []  # the latest lines that came too early for the log
        self._next = -math.inf
        self.pulse = Pulse(self._show_life)

    def __enter__(self) -> Terminal:
        if not self._quiet:
            self.pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pulse.stop()
        self.leave_phase()

    def be_quiet(self) -> None:
        """Show nothing from now on, because another process shows it."""
        self.pulse.stop()
        self._quiet = True

    def begin(self, activity: str) -> None:
        """Say what the program does from now on, as in "loading the language model", until there is other news."""
        self.leave_phase()
        self.say(activity)
        self._activity = activity

    @one_at_a_time
    def say(self, text: str) -> None:
        """Print a message that stays on screen, above the progress that is being redrawn."""
        if self._quiet:
            return
        self._remove_life()
        if self._redraws:
            text = folded(text, self._console.width)
        self._console.print(self._console.literal(text), soft_wrap=True)
        self.pulse.has_shown_news()

    @one_at_a_time
    def show(self, table: RenderableType) -> None:
        """Print a finished table, as wide as the screen or wider if it must not be cut."""
        if not self._quiet:
            self._remove_life()
            self._console.print(table, crop=False)
            self.pulse.has_shown_news()

    @one_at_a_time
    def progress(self, phase: str, done: int, total: int) -> None:
        """Show a phase's progress bar with its rate and time left.

        The rate leaves out what happened before the second call, which includes compilation, as soon as it can.
        """
        if self._quiet:
            return
        if self._phase == phase and done < self._done:  # the phase begins once more, with other work
            self.leave_phase()
        self._done = done
        now = (self._clock(), done)
        since = now if self._enter_phase(phase) else self._calls[-1]
        if len(self._calls) < 2:
            self._calls.append(now)
        seconds, done_here = now[0] - since[0], done - since[1]
        rate = done_here / seconds if seconds > 0 and done_here > 0 else math.nan
        share = done / total if total else 1.0
        left = left_text(share, (total - done) / rate)
        unit = "rows" if phase.startswith("evaluation") else UNITS.get(phase.partition(",")[0], "tokens")
        counts = [f"{done:,}/{total:,} {unit}", rate_text(rate, f"{unit}/s")]

        def frame(_: int | None) -> RenderableType:
            return self._heading(phase, share, left, counts)

        self._show(frame, [head_line(phase, share, left, counts)], last=done >= total)

    def past(self, losses: Iterable[tuple[str, float]]) -> None:
        """Add earlier losses, as (member id, loss), to the curves of the members."""
        for member_id, loss in losses:
            self._curves[member_id].append(loss)

    @one_at_a_time
    def training_progress(self, progress: Progress) -> None:
        """Show step, rows/s and time left, and a table of the members' metrics and loss curves."""
        if self._quiet:
            return
        for member_id, metrics in progress.members.items():
            self._curves[member_id].append(float(metrics.get("mse", math.nan)))
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

    @one_at_a_time
    def results(self, results: dict[str, Any], run_dir: str, fitted: bool = False) -> None:
        """Print the box EXPERIMENT RESULTS from the content of results.json, and the path of the results.

        `fitted` says that the decoders were fitted after training.
        """
        self.leave_phase()
        failed = [member for member in results["members"] if member.get("failed")]
        if self._quiet:
            for member in failed:
                print(self._console.literal(f"{member_name(member)}: {failure_text(member)}"), file=sys.stderr)
            self._console.print(self._console.literal(run_dir), soft_wrap=True)
            return
        self._console.print(self._console.results_box(results, run_dir, fitted))
        if self._console.shortened_path(run_dir) != self._console.literal(run_dir).plain:
            self._console.print(self._console.literal(f"results: {run_dir}"), soft_wrap=True)

    @one_at_a_time
    def table(self, header: list[str], rows: list[list[str]], spare: Spare | None = None) -> None:
        """Print a table whose rows have an id and numbers."""
        self.leave_phase()
        self.show(self._console.table(header, rows, spare=spare))

    # Phases.

    def _enter_phase(self, phase: str) -> bool:
        if phase == self._phase:
            return False
        self.leave_phase()
        self._phase, self._next, self._calls, self._activity = phase, -math.inf, [], f"working on: {phase}"
        return True

    @one_at_a_time
    def leave_phase(self) -> None:
        """End the phase. Its last frame or line stays visible."""
        self._remove_life()
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
            self._redraw(frame(self._console.height - 1))
            self.pulse.has_shown_news()
        else:
            self._next = now + LINE_SECONDS * len(lines)
            self._write(lines)
            self._unwritten = []

    def _redraw(self, frame: RenderableType) -> None:
        if self._live is None:
            # Rich redirects what others print to above the live region. A stream to a file is left alone.
            elsewhere = {f"redirect_{name}": getattr(sys, name).isatty() for name in ("stdout", "stderr")}
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop", **elsewhere)
            self._live.start()
        self._live.update(frame, refresh=True)

    def _show_life(self, seconds: float) -> None:
        """Say that the phase or activity goes on. A log gets the latest progress instead, if it was not written."""
        text = f"still {self._activity} ({duration_text(seconds)})"
        if not self._redraws:
            line, self._unwritten = (self._unwritten or [text])[0], []
            self._console.print(self._console.literal(line), soft_wrap=True)
        elif self._frame is None:
            self._redraw(Text(text, style="dim"))
        else:
            self._redraw(Group(self._frame(self._console.height - 2), Text(text, style="dim")))

    def _remove_life(self) -> None:
        """Remove the sign of life from a screen on which no phase is shown."""
        if self._live is not None and self._frame is None:
            self._live.transient = True
            self._live.stop()
            self._live = None

    def _write(self, lines: list[str]) -> None:
        for line in lines:
            self.say(line)

    # Drawing.

    def _heading(self, phase: str, share: float, left: str, counts: list[str]) -> RenderableType:
        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            bar.add_column(ratio=ratio, no_wrap=True)
        done = ProgressBar(1.0, share, complete_style="cyan", finished_style="green")
        name = self._console.shorten(self._console.literal(phase).plain, self._console.width - BAR_COLUMNS)
        bar.add_row(Text(name, style="bold"), done, percent_done(share).rjust(4), left.rjust(10))
        return Group(bar, Text("   ".join(filter(None, counts)), style="dim", no_wrap=True))

    def _members(self, progress: Progress, height: int | None) -> RenderableType:
        """The members' table in at most `height` lines, heading included. Members without room are summarized.

        The best members are shown first of all.
        """
        members, best = progress.members, best_members(progress.members, progress.l0_asked)
        room = len(members) if height is None else max(height - 4, 1)
        if len(members) <= room:
            shown = list(members)
        else:
            first = sorted(members, key=lambda member_id: member_id not in best)[: max(room - 1, 1)]
            shown = [member_id for member_id in members if member_id in first]
        rows = [[member_id, *number_cells(members[member_id])] for member_id in shown]
        # Padded, so that the columns keep their widths during a run.
        header = ["member", "loss (mse)".rjust(10), "EV".rjust(7), "L0".rjust(7), "dead".rjust(6)]
        curves = [self._curves[member_id] for member_id in shown]
        table = self._console.table(header, rows, curves=curves, best=best, short=told_apart(shown, list(members)))
        if len(shown) == len(members):
            return table
        hidden = [metrics for member_id, metrics in members.items() if member_id not in shown]
        return Group(table, Text(f"and {len(hidden)} more: {ranges_text(hidden)}", style="dim", no_wrap=True))

    def _log_lines(self, head: str, members: dict[str, dict[str, float]]) -> list[str]:
        """Lines of a log: a single member's numbers follow the heading, those of several are listed below it."""
        texts = ["loss {}  ev {}  l0 {}  dead {}".format(*number_cells(metrics)) for metrics in members.values()]
        before = f"{head}  |  " if len(members) == 1 else "  "
        ids = [self._console.literal(member_id).plain for member_id in members]
        rooms = [max(LOG_COLUMNS - len(before) - len(text) - 2, ID_COLUMNS) for text in texts]
        width = max(map(cell_len, ids), default=0)
        lines = [
            f"{before}{set_cell_size(self._console.shorten(member_id, room), min(width, room))}  {text}"
            for member_id, room, text in zip(ids, rooms, texts, strict=True)
        ]
        return lines if len(members) == 1 else [head, *lines]
