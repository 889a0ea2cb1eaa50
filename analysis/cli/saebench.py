"""Run three SAEBench benchmarks on a finished run.

They are sparse probing, absorption and spurious correlation removal.

python main.py saebench RUN                                       # all members, on the bundled corpus
python main.py saebench RUN --member ID --metrics probing --k 1 5
python main.py saebench RUN --dataset texts.jsonl --label genre --concepts genre=crime:romance year=1900,1910:1990
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.cli.flags import filled, parsed, place
from analysis.cli.found_member import say_found
from analysis.cli.output import Output
from analysis.quality.saebench import SAEBench, as_dicts, run_benchmarks, settings_record, write_benchmark
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.terminal.tables import benchmark_tables
from analysis.ui.terminal.wording import counted
from harvest.flags import DEVICE, WHERE, Flags, flag
from harvest.request import default_cache_dir


@dataclass(frozen=True)
class Options(Flags):
    run: Path = place("RUN", "a run directory")
    member: tuple[str, ...] = flag((), "members, by ids, parts of ids or `best` (default: all)")
    device: str = flag("auto", WHERE, DEVICE)
    cache_dir: Path = flag(default_cache_dir(), "where compiled programs are kept")


def run(argv: list[str]) -> None:
    values = parsed("saebench", __doc__, argv, Options, SAEBench, Output)
    options, settings, output = filled(Options, values), filled(SAEBench, values), filled(Output, values)
    finished = FinishedRun.open(options.run, options.device)
    finished.need_language_model()
    members = finished.chosen(options.member)
    answers: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    with output.terminal() as terminal:
        say_found(finished, options.member, terminal)
        kept = can_be_kept(finished.path, terminal.say)
        terminal.say(f"up to {settings.documents:,} documents are run through the model, which takes minutes on a CPU")
        terminal.begin(f"loading {counted(len(members), 'dictionary')}, the language model and the documents")
        for question, answer in run_benchmarks(settings, finished, members, notes, terminal.progress):
            terminal.leave_phase()
            if kept and (replaced := write_benchmark(question, answer, settings, finished)):
                notes.append(f"{question}: replaces the results of {', '.join(replaced)}, measured with other settings")
            answers[question] = answer
        terminal.show(benchmark_tables(answers))
        for note in [*notes, f"all numbers: {finished.path / 'analysis'}"] if kept else notes:
            terminal.say(note)
    output.write({"settings": settings_record(settings, finished), "benchmarks": as_dicts(answers)})
