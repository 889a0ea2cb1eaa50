"""The files that a study leaves in its run: the figures of its answers, and analysis/study.json."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

from analysis.plots.style import save
from analysis.study.measures import PopulationMeasures
from analysis.study.questions import Answer
from harvest.files import write_json


def write_study(answers: list[Answer], measures: PopulationMeasures, control: PopulationMeasures | None) -> list[Path]:
    """Write the figures and analysis/study.json. Returns their paths, study.json last."""
    run, paths, records = measures.run.path, [], []
    for answer in answers:
        for name, figure in answer.figures.items():
            paths.append(save(figure, run / "figures" / name)[0])
        plain = asdict(replace(answer, figures={}))
        records.append(plain | {"figures": list(answer.figures)})
    record = {"schema": 1, "run": run.resolve().name, "control": control and control.run.path.resolve().name}
    record |= {"date": date.today().isoformat(), "values": measures.values, "notes": measures.notes, "answers": records}
    write_json(run / "analysis" / "study.json", record)
    return [*paths, run / "analysis" / "study.json"]
