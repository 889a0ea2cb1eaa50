"""The files that a study leaves in its run: the figures of its answers, and analysis/study.json."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.plots.style import save
from analysis.study.measures import PopulationMeasures
from analysis.study.questions import Answer
from harvest.files import write_json


def study_record(
    answers: list[Answer], measures: PopulationMeasures, control: PopulationMeasures | None
) -> dict[str, Any]:
    """The content of analysis/study.json."""
    records = [
        asdict(replace(answer, figures={})) | {"figures": [figure_name(number, name) for name in answer.figures]}
        for number, answer in enumerate(answers, 1)
    ]
    record = {"schema": 1, "run": measures.run.path.resolve().name}
    record |= {"control": control and control.run.path.resolve().name}
    return record | {"values": measures.values, "notes": measures.notes, "answers": records}


def write_study(answers: list[Answer], run: Path, record: dict[str, Any]) -> list[Path]:
    """Write the figures and analysis/study.json. Returns their paths, study.json last."""
    paths = [
        save(figure, run / "figures" / figure_name(number, name))[0]
        for number, answer in enumerate(answers, 1)
        for name, figure in answer.figures.items()
    ]
    write_json(run / "analysis" / "study.json", record)
    return [*paths, run / "analysis" / "study.json"]


def figure_name(number: int, name: str) -> str:
    return f"study-{number}-{name}"
