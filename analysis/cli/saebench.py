"""Sparse probing, feature absorption and spurious correlation removal of a finished run's dictionaries.

python main.py saebench RUN                                       # all members, on the bundled corpus
python main.py saebench RUN --member ID --metrics probing --k 1 5
python main.py saebench RUN --dataset texts.jsonl --label genre --concepts genre=crime:romance year=1900,1910:1990
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.cli.flags import Parser, filled
from analysis.quality.saebench import SAEBench, measure, write
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.terminal.live import Terminal
from harvest.request import flag


@dataclass(frozen=True)
class Options:
    member: tuple[str, ...] = flag((), "ids of members (default: all)")


def run(argv: list[str]) -> None:
    parser = Parser(prog="main.py saebench", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_flags("of whom", Options)
    parser.add_flags("what", SAEBench)
    values = vars(parser.parse_args(argv))
    settings, finished = filled(SAEBench, values), FinishedRun.open(values["run"])
    members = finished.chosen(filled(Options, values).member)
    answers: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    kept = can_be_kept(finished.path, print)
    for question, answer in measure(settings, finished, members, notes):
        if kept:
            write(question, answer, settings, finished, members)
        answers[question] = answer
    show(answers, [*notes, f"in {finished.path / 'analysis'}"] if kept else notes)


def show(answers: dict[str, dict[str, Any]], notes: list[str]) -> None:
    from rich import box
    from rich.table import Table

    rows: dict[str, dict[str, str]] = {}
    for name, by_label in answers.get("sparse_probing", {}).items():
        for k in next(iter(by_label.values())).accuracy:
            mean = sum(of.accuracy[k] for of in by_label.values()) / len(by_label)
            rows.setdefault(name, {})[f"probe\n{k if k == 'all' else f'k={k}'}"] = f"{mean:.3f}"
    for name, of in answers.get("absorption", {}).items():
        cells = {
            "mean": of.fraction,
            "full": of.full,
            "split": of.split_features,
            "F1": of.split_f1,
            "probe": of.probe_f1,
        }
        rows.setdefault(name, {}).update({f"absorb\n{k}": number(value) for k, value in cells.items()})
    for name, of in answers.get("spurious_correlation", {}).items():
        rows.setdefault(name, {}).update({f"SCR\nn={n}": number(value) for n, value in of.score.items()})
    heads = list(dict.fromkeys(head for row in rows.values() for head in row))
    table = Table("", *heads, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for name, row in rows.items():
        table.add_row(name, *(row.get(head, "") for head in heads))
    with Terminal() as terminal:
        terminal.show(table)
        for note in notes:
            terminal.say(note)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
