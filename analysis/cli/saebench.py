"""Run three SAEBench benchmarks on a finished run: sparse probing, absorption and spurious correlation removal.

python main.py saebench RUN                                       # all members, on the bundled corpus
python main.py saebench RUN --member ID --metrics probing --k 1 5
python main.py saebench RUN --dataset texts.jsonl --label genre --concepts genre=crime:romance year=1900,1910:1990
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.cli.flags import filled, parsed, place
from analysis.quality.saebench import SAEBench, run_benchmarks, write_benchmark
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.tables import benchmark_table
from harvest.flags import Flags, flag


@dataclass(frozen=True)
class Options(Flags):
    run: Path = place("RUN", "a run directory")
    member: tuple[str, ...] = flag((), "ids of members (default: all)")


def run(argv: list[str]) -> None:
    values = parsed("saebench", __doc__, argv, Options, SAEBench)
    options, settings = filled(Options, values), filled(SAEBench, values)
    finished = FinishedRun.open(options.run)
    members = finished.chosen(options.member)
    answers: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    with Terminal() as terminal:
        kept = can_be_kept(finished.path, terminal.say)
        for question, answer in run_benchmarks(settings, finished, members, notes):
            if kept:
                write_benchmark(question, answer, settings, finished, members)
            answers[question] = answer
        terminal.show(benchmark_table(answers))
        for note in [*notes, f"all numbers: {finished.path / 'analysis'}"] if kept else notes:
            terminal.say(note)
