"""Measure runs and single dictionaries on the same text.

The table has explained variance, L0, dead features and cross-entropy recovered.

python main.py evaluate runs/NAME                             # the members of a run, as after training
python main.py evaluate runs/NAME SAE_DIR --dataset my.jsonl  # a run and another dictionary, on your own text
python main.py evaluate SAE_DIR --model-name gpt2 --hook-name blocks.8.hook_resid_pre --json results.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.cli.flags import filled, parsed, place
from analysis.cli.output import Output
from analysis.quality.evaluate import evaluate_dictionaries
from analysis.quality.measured_on import EvaluateSettings
from analysis.quality.opened import dictionaries_in, failed_in, open_dictionary
from analysis.ui.terminal.tables import EVALUATION_SPARE, evaluation_cells
from analysis.ui.terminal.wording import basis_text, counted
from harvest.errors import InputError
from harvest.flags import Flags


@dataclass(frozen=True)
class Options(Flags):
    directories: tuple[Path, ...] = place("DIR", "run directories and dictionaries")


def run(argv: list[str]) -> None:
    values = parsed("evaluate", __doc__, argv, Options, EvaluateSettings, Output)
    directories, output = filled(Options, values).directories, filled(Output, values)
    options = filled(EvaluateSettings, values)
    paths = [path for given in directories for path in dictionaries_in(given)]
    if twice := [path for path in paths if [p.resolve() for p in paths].count(path.resolve()) > 1]:
        raise InputError(f"{twice[0]} is given twice: give each dictionary once")
    with output.terminal() as terminal:
        terminal.begin(f"loading {counted(len(paths), 'dictionary')}, the language model and the text")
        opened = [open_dictionary(path) for path in paths]
        for given in directories:
            if ids := failed_in(given):
                terminal.say(
                    f"{given}: no results for {', '.join(ids)}: training stopped early and wrote no dictionary"
                )
        report = evaluate_dictionaries(opened, options, terminal.progress, terminal.say)
        terminal.table(*evaluation_cells(report), EVALUATION_SPARE)
        for line in basis_lines(report["dictionaries"], report["request"]["held_out"] < 1):
            terminal.say(line)
    output.write(report)


def basis_lines(entries: list[dict[str, Any]], calibrated: bool) -> list[str]:
    """On how much text the table rests, and why it has no intervals if it has none."""
    from analysis.stats import FEWEST_DOCUMENTS

    lines = list(dict.fromkeys(basis_text(of["rows"], of["measured_on"], of, calibrated) for of in entries))
    fewest = min((entry for entry in entries if "documents" in entry), key=lambda of: of["documents"], default=None)
    if fewest and fewest["documents"] < FEWEST_DOCUMENTS:
        more = "raise --ce-windows" if fewest["windows"] < fewest["measured_on"]["windows"] else "raise --n-samples"
        lines.append(f"no intervals: they need {FEWEST_DOCUMENTS} documents, not {fewest['documents']}: {more}")
    return lines
