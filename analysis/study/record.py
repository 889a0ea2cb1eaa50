"""The files that a study leaves in its run: the figures of its answers, and analysis/study.json."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import date
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
    records = [asdict(replace(answer, figures={})) | {"figures": list(answer.figures)} for answer in answers]
    record = {"schema": 1, "run": measures.run.path.resolve().name, "date": date.today().isoformat()}
    record |= {"control": control and control.run.path.resolve().name}
    return record | {"values": measures.values, "notes": measures.notes, "answers": records}


def write_study(answers: list[Answer], run: Path, record: dict[str, Any]) -> list[Path]:
    """Write the figures and analysis/study.json. Returns their paths, study.json last."""
    figures = {name: figure for answer in answers for name, figure in answer.figures.items()}
    paths = [save(figure, run / "figures" / name)[0] for name, figure in figures.items()]
    write_json(run / "analysis" / "study.json", record)
    return [*paths, run / "analysis" / "study.json"]
