"""The files that a study leaves in its run: the figures of its answers, and analysis/study.json."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from analysis.plots.style import save
from analysis.study.measures import PopulationMeasures
from analysis.study.questions import Answer
from harvest.files import write_json


def write_study(answers: list[Answer], measures: PopulationMeasures, control: PopulationMeasures | None) -> list[Path]:
    """Write the figures and analysis/study.json. Returns their paths, study.json last."""
    run, paths, records = measures.run.path, [], []
    for number, answer in enumerate(answers, 1):
        for name, figure in answer.figures.items():
            paths.append(save(figure, run / "figures" / f"study-{number}-{name}")[0])
        plain = asdict(replace(answer, figures={}))
        records.append(plain | {"figures": [f"study-{number}-{name}" for name in answer.figures]})
    record = {"schema": 1, "run": run.resolve().name, "control": control and control.run.path.resolve().name}
    record |= {"values": measures.values, "notes": measures.notes, "answers": records}
    write_json(run / "analysis" / "study.json", record)
    return [*paths, run / "analysis" / "study.json"]
