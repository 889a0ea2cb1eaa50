"""The console of a terminal or a log, and the tables that are fitted to its width. Computes nothing.

Names, ids and paths are printed as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from operator import add
from typing import Any, TextIO

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from analysis.runs.remarks import remarks_on
from analysis.ui.terminal.fitted import Spare
from analysis.ui.terminal.sparkline import LossCurve
from analysis.ui.terminal.wording import (
    basis_text,
    failure_text,
    member_name,
    results_cells,
    sites_text,
    source_text,
    times_text,
    visible,
)
from sae_jax.best_member import L0_TOLERANCE, best_members_of_results
from sae_jax.lookup import told_apart

LOG_COLUMNS = 160  # longest line of progress in a log
CURVE_COLUMNS = 16  # ids are shortened before the curve gets narrower than this
BEST = f"highest explained variance for its target L0, with an L0 within {L0_TOLERANCE:.0%} of it"
FITTED = "fitted to training rows after training, so the numbers differ from the last ones in training"
ID_COLUMNS = 12  # the curve is shortened before the ids get narrower than this
RESULTS_SPARE = Spare(("train", "sparsity", "dead", "loss (mse)"), "results.json")
SOURCES = {"model": "model", "text": "dataset"}  # the key in results.json of each
GAP = 2  # between columns
REMARKS = 2  # on members, at most
LEAST_COLUMNS, LEAST_LINES = 40, 5  # on a narrower screen the lines wrap


class Screen(Console):
    """A console that removes control characters from the text it prints and has a minimum size.

    If it does not redraw, it is as wide as a log and has no colours.
    """

    def __init__(self, stream: TextIO, redraws: bool) -> None:
        plain: dict[str, Any] = {} if redraws else {"color_system": None, "width": LOG_COLUMNS}
        super().__init__(
            file=stream,
            force_terminal=redraws,
            force_jupyter=False,
            highlight=False,
            emoji=False,
            markup=False,
            **plain,
        )
        unicode = self.encoding.startswith("utf")
        self._levels, self._no_level, self._ellipsis = ("▁▂▃▄▅▆▇█", "×", "…") if unicode else ("_.:-=+*#", "x", "..")
        self._best = " ★" if unicode else " *"

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        width, height = super().size
        return ConsoleDimensions(max(width, LEAST_COLUMNS), max(height, LEAST_LINES))

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # instead of rich's SystemExit, so that the command can report it

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def literal(self, text: str) -> Text:
        """The text without markup, control characters and characters that the stream cannot encode."""
        return Text(visible(text.expandtabs()).encode(self.encoding, "replace").decode(self.encoding))

    def shorten(self, text: str, columns: int) -> str:
        """The text in at most `columns` columns. The middle is left out, because ids and paths differ at their ends."""
        if cell_len(text) <= columns:
            return text
        keep = max(columns - len(self._ellipsis), 0)
        head, tail = set_cell_size(text, keep // 2), set_cell_size(text[::-1], keep - keep // 2)[::-1]
        return head.removesuffix(self._ellipsis) + self._ellipsis + tail.removeprefix(self._ellipsis)

    def table(
        self,
        header: list[str],
        rows: list[list[str]],
        columns: int | None = None,
        curves: Sequence[LossCurve] | None = None,
        best: Collection[str] = (),
        short: Sequence[str] = (),
        spare: Spare | None = None,
    ) -> Table:
        """A table with an id and numbers in each row. Ids get the width that numbers and curves leave free.

        If that is too little, `spare` columns are left out. If it still is, ids are replaced by `short`, or by what
        distinguishes the rows. At last they are shortened, but never so far that two of them look the same.
        """
        whole = [self.literal(row[0]).plain for row in rows]
        stars = [self._best if row[0] in best else "" for row in rows]
        widths = {cells[0]: max(map(len, cells)) for cells in zip(*(row[1:] for row in [header, *rows]), strict=True)}
        least = CURVE_COLUMNS + GAP if curves is not None else 0

        def free(without: Collection[str]) -> int:
            kept = [width + GAP for name, width in widths.items() if name not in without]
            return (columns or self.width) - sum(kept)

        less = spare.choices if spare else [()]
        choices = [(names, without) for names in (whole, list(short) or told_apart(whole)) for without in less]
        names, left_out = next(
            (
                (names, without)
                for names, without in choices
                if max(map(cell_len, map(add, names, stars))) <= max(free(without) - least, ID_COLUMNS)
            ),
            choices[-1],
        )
        ids = list(map(add, names, stars))
        room = max(free(left_out) - least, ID_COLUMNS)
        while len({self.shorten(member_id, room) for member_id in ids}) < len(set(ids)):
            room += 1
        id_columns = min(max(map(cell_len, [header[0], *ids])), room)
        curve_columns = free(left_out) - id_columns - GAP
        kept = [i for i, name in enumerate(header) if i and name not in left_out]

        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
        table.add_column(header[0], width=id_columns, no_wrap=True)
        for i in kept:
            table.add_column(header[i], width=widths[header[i]], justify="right", no_wrap=True)
        if curves is not None and curve_columns >= len("loss"):
            table.add_column("loss so far" if curve_columns >= 11 else "loss", width=curve_columns, no_wrap=True)
        for i, (member_id, row) in enumerate(zip(ids, rows, strict=True)):
            cells = [Text(self.shorten(member_id, id_columns)), *(Text(row[number]) for number in kept)]
            if len(table.columns) > len(cells) and curves is not None:
                cells.append(Text(curves[i].draw(curve_columns, self._levels, self._no_level), style="cyan"))
            bad = any(cell in ("nan", "inf", "-inf", "failed") for cell in row[1:])
            table.add_row(*cells, style="red" if bad else "")
        if spare and left_out:
            table.caption, table.caption_justify = spare.note(left_out), "left"
        return table

    def results_table(self, members: list[dict[str, Any]], columns: int) -> Table:
        header, rows = results_cells(members)
        best = best_members_of_results({member_name(m): m for m in members})
        return self.table(header, rows, columns, best=best, spare=RESULTS_SPARE)

    def results_box(self, results: dict[str, Any], run_dir: str, fitted: bool = False) -> Table:
        """The box EXPERIMENT RESULTS from the content of results.json. `fitted` says that the decoders were fitted."""
        inside = self.width - 4
        members = results["members"]
        sections: list[RenderableType] = [self.results_table(members, inside)]
        if failed := [(member_name(m), failure_text(m)) for m in members if m.get("failed")]:
            sections.append(self._pairs(failed, inside, style="red"))
        measured = [(member_name(m), remarks_on(m.get("metrics") or {})) for m in members]
        if remarks := [(name, remark) for name, remark in measured if remark]:
            rest = [("", f"the same holds for {len(remarks) - REMARKS} more")] if len(remarks) > REMARKS else []
            sections.append(self._pairs([*remarks[:REMARKS], *rest], inside))
        facts = [(self._best.strip(), BEST)] if best_members_of_results({m["id"]: m for m in members}) else []
        facts += [(name, source_text(results[key])) for name, key in SOURCES.items() if key in results]
        facts += [("site", sites_text(members))]
        if held_out := results.get("held_out"):
            basis = basis_text(held_out["rows"], held_out, results.get("loss_recovered"), calibrated=True)
            facts += [("held out", basis)]
        facts += [("decoder", FITTED)] if fitted else []
        facts += [
            ("backend", results["backend"]),
            ("time", times_text(results["timing"])),
            ("results", self.shortened_path(run_dir)),
        ]
        sections.append(self._pairs(facts, inside))
        frame = Table(box=box.DOUBLE, show_lines=True, border_style="cyan")
        frame.add_column(Text("EXPERIMENT RESULTS", style="bold", justify="center"))
        for section in sections:
            frame.add_row(section)
        return frame

    def shortened_path(self, run_dir: str) -> str:
        """The path, shortened to fit into the box of results."""
        return self.shorten(self.literal(run_dir).plain, self.width - 4 - len("results") - GAP)

    def _pairs(self, pairs: list[tuple[str, str]], columns: int, style: str = "") -> Table:
        table = Table.grid(padding=(0, GAP))
        table.add_column(style="dim", overflow="fold", max_width=columns // 2)
        table.add_column(style=style, overflow="fold")
        for name, value in pairs:
            table.add_row(self.literal(name), self.literal(value))
        return table
