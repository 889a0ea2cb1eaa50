"""Tables from which a narrow terminal leaves columns out, so that ids and names stay whole and can be pasted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

WIDEST = 10_000  # columns: wider than any table


@dataclass(frozen=True)
class Spare:
    """The columns that a table can do without, the least important first, and where else their numbers are."""

    names: tuple[str, ...]
    elsewhere: str

    @property
    def choices(self) -> list[tuple[str, ...]]:
        """All choices of columns to leave out, from none of them to all."""
        return [self.names[:count] for count in range(len(self.names) + 1)]

    def note(self, left_out: Collection[str]) -> str:
        return f"left out: {', '.join(left_out)}; a wider terminal or {self.elsewhere} has them"


@dataclass(frozen=True)
class Fitted:
    """A table without as few of its spare columns as let the rest fit into the width that it is printed in.

    `draw` makes the table without some columns. If the smallest table is still too wide, its lines are too long, which
    a terminal wraps without breaking what is copied. `explain` makes a legend for the table without these columns.
    """

    draw: Callable[[Collection[str]], Table]
    spare: Spare
    explain: Callable[[Collection[str]], Table] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for left_out in self.spare.choices:
            table = self.draw(left_out)
            for column in table.columns:
                if column.no_wrap:  # otherwise rich takes the longest word for the least width
                    texts = map(str, (column.header, *column.cells))
                    column.min_width = max(cell_len(line) for text in texts for line in text.split("\n"))
            least = table.__rich_measure__(console, options.update(max_width=WIDEST)).minimum
            if least <= options.max_width:
                break
        yield from console.render(table, options.update(width=max(least, options.max_width)))
        if left_out:
            yield Text(self.spare.note(left_out), style="dim")
        if self.explain:
            yield self.explain(left_out)
