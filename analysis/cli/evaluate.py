"""Measure explained variance, L0, dead features and cross-entropy recovered of several dictionaries on the same text.

python main.py evaluate runs/NAME                             # the members of a run, as after training
python main.py evaluate runs/NAME SAE_DIR --dataset my.jsonl  # a run and another dictionary, on your own text
python main.py evaluate SAE_DIR --model-name gpt2 --hook-name blocks.8.hook_resid_pre --json results.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.cli.flags import filled, parsed, place
from analysis.quality.evaluate import EvaluateSettings, evaluate_dictionaries
from analysis.quality.opened import dictionaries_in, failed_in, open_dictionary
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.tables import evaluation_cells
from harvest.errors import InputError
from harvest.files import write_json
from harvest.flags import Flags


@dataclass(frozen=True)
class Options(Flags):
    directories: tuple[Path, ...] = place("DIR", "run directories and dictionaries")


def run(argv: list[str]) -> None:
    values = parsed("evaluate", __doc__, argv, Options, EvaluateSettings)
    directories, options = filled(Options, values).directories, filled(EvaluateSettings, values)
    from analysis.stats import FEWEST_DOCUMENTS

    paths = [path for given in directories for path in dictionaries_in(given)]
    if twice := [path for path in paths if [p.resolve() for p in paths].count(path.resolve()) > 1]:
        raise InputError(f"{twice[0]} is given twice: give each dictionary once")
    opened = [open_dictionary(path) for path in paths]
    failed = {given: ids for given in directories if (ids := failed_in(given))}
    with Terminal() as terminal:
        for given, ids in failed.items():
            terminal.say(f"{given}: no results for {', '.join(ids)}: training stopped early and wrote no dictionary")
        report = evaluate_dictionaries(opened, options, terminal.progress, terminal.say)
        terminal.table(*evaluation_cells(report))
        documents = {entry["documents"] for entry in report["dictionaries"] if "documents" in entry}
        if documents and min(documents) < FEWEST_DOCUMENTS:
            terminal.say(
                f"no intervals: they need {FEWEST_DOCUMENTS} documents, not {min(documents)}: "
                "raise --ce-windows or --n-samples"
            )
    if options.json:
        write_json(options.json, report)
