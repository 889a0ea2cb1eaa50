"""List the runs in a folder, with their state and best result.

python main.py runs            # the runs in runs/, where training writes them by default
python main.py runs FOLDER
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.cli.flags import filled, parsed, place
from analysis.cli.output import Output
from analysis.ui.terminal.tables import runs_table
from harvest.flags import Flags
from sae_jax.run_directory import RUNS


@dataclass(frozen=True)
class Options(Flags):
    folder: Path = place("FOLDER", "the folder that holds the runs", RUNS)


def run(argv: list[str]) -> None:
    values = parsed("runs", __doc__, argv, Options, Output)
    options, output = filled(Options, values), filled(Output, values)
    from analysis.runs.listing import runs_in

    with output.terminal() as terminal:
        runs = runs_in(options.folder)
        if runs:
            terminal.show(runs_table(runs))
        else:
            terminal.say(f"there are no runs in {options.folder}")
        for run in runs:
            if trouble := run.get("trouble"):
                terminal.say(f"{run['name']}: {trouble}")
    output.write({"runs": runs})
