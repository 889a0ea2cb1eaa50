"""Plot explained variance and CE recovered against L0.

python main.py frontier runs/first runs/second --to DIR
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from analysis.cli.flags import filled, parsed, place
from analysis.cli.output import Output
from analysis.comparison.frontier import compute_frontier, write_frontier
from analysis.runs.finished import can_be_kept
from analysis.ui.terminal.tables import frontier_table
from harvest.errors import InputError
from harvest.flags import Flags, flag


@dataclass(frozen=True)
class Options(Flags):
    runs: tuple[Path, ...] = place("RUN", "directories of finished runs")
    to: Path | None = flag(
        None, "folder for the figure and its numbers (default: RUN if one run is given, otherwise ./frontier)"
    )


def run(argv: list[str]) -> None:
    values = parsed("frontier", __doc__, argv, Options, Output)
    options, output = filled(Options, values), filled(Output, values)
    from analysis.plots.frontier import frontier_chart
    from analysis.plots.style import save

    frontier = compute_frontier(*options.runs)
    to = options.to or (options.runs[0] if len(options.runs) == 1 else Path("frontier"))
    with output.terminal() as terminal:
        terminal.say(frontier.title)
        terminal.show(frontier_table(frontier))
        for member in frontier.failed:
            terminal.say(f"{member} has no results: its training failed")
        if not frontier.has_curve:
            if not options.to:  # otherwise the error below says so
                terminal.say(
                    "no figure: it needs one kind at two or more sparsities with otherwise equal settings, trained "
                    "with --target-l0 16 32 or --k 16 32"
                )
        elif options.to or can_be_kept(to, terminal.say):
            write_frontier(frontier, to / "analysis")
            figures = save(frontier_chart(frontier), to / "figures" / "frontier")
            terminal.say(f"figure: {', '.join(map(str, figures))}")
    output.write({"schema": 1, **asdict(frontier)})
    if options.to and not frontier.has_curve:
        raise InputError(
            f"--to {to}: there is no figure to write, because no kind has results at two or more sparsities "
            "with otherwise equal settings: train with --target-l0 16 32 or --k 16 32, or leave --to out"
        )
