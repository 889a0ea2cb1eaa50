"""The content of a report of finished runs: saved results, and results that are fast to compute.

Slow results that are missing are not computed: `missing` says why a section is empty, and which command fills it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from shlex import quote
from typing import Any

from analysis.features.statistics import Features, load_or_compute_features
from analysis.pages.highlights import Highlight, highlights
from analysis.runs.families import source_name
from analysis.runs.finished import STUDY_AGAIN, FinishedRun
from analysis.runs.reproduce import reproduction_command
from analysis.runs.shapes import Study
from analysis.stats import Estimate
from analysis.ui.report import figures
from analysis.ui.report.figures import Drawn, Section
from analysis.ui.terminal.wording import counted, pasted
from harvest.errors import InputError
from sae_jax.shapes import read_shaped

SHOWN = 384  # features in total, but from LEAST to MOST for each member
LEAST, MOST = 8, 24


@dataclass(frozen=True)
class Part:
    """The content about one run. `figures` and `missing` are by section, `answers` are those of study.json."""

    run: FinishedRun
    is_control: bool
    summary: list[str]  # sentences
    facts: dict[str, str]
    command: str
    members_json: str  # the content of the members' file, if there is one
    features: dict[str, Features]
    shown: dict[str, list[Highlight]]
    answers: list[dict[str, Any]]
    figures: dict[str, list[Drawn]]
    missing: dict[str, str]


@dataclass(frozen=True)
class Report:
    written: date
    frontier: Drawn | None  # None if all members failed
    parts: list[Part]


def compose(
    runs: Sequence[FinishedRun],
    control: FinishedRun | None,
    cache_dir: Path,
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> Report:
    """The report of these runs, the control last. Raises InputError if a run is given twice."""
    everything = [*runs, control] if control else list(runs)
    members = sum(len(run.members) for run in everything)
    count, frontier = min(MOST, max(LEAST, SHOWN // max(1, members))), figures.pareto(everything)
    parts = [part_of(run, run is control, count, cache_dir, on_progress, say) for run in everything]
    return Report(date.today(), frontier, parts)


def part_of(
    run: FinishedRun,
    is_control: bool,
    count: int,
    cache_dir: Path,
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> Part:
    features, shown, missing = {}, {}, {}
    members, study = list(run.members), pasted(f"python main.py study {quote(str(run.path))}")
    if not members:
        missing["features"] = "All members failed: there are no features to show."
    try:
        features = load_or_compute_features(run, members, cache_dir, on_progress, say)
        for number, (name, statistics) in enumerate(features.items(), 1):
            store = run.store(run.site(name), cache_dir, on_progress, say)
            shown[name] = highlights(statistics, count, store, run.tokenizer)
            on_progress("examples", number, len(features))
    except InputError as error:
        missing["features"] = f"What the features do is not shown: {error}"
        say(missing["features"])
    answers = saved_answers(run)
    if not answers:
        missing["study"] = f"The study was not run: {study}"
    sections: dict[str, Section] = {
        f"study-{number}": figures.answered(number, answer) for number, answer in enumerate(answers, 1)
    }
    sections["training"] = figures.training(run, say)
    if features:
        sections |= {
            "densities": figures.densities(run, features),
            "comparison": figures.features_in_common(run, features, study),
            "emergence": figures.emergence(run, features),
        }
        sections["clusters"], without = figures.clusters_of_features(run, features, study)
        missing |= {"clusters": without} if without else {}
    facts = facts_of(run)
    return Part(
        run=run,
        is_control=is_control,
        summary=[
            sentence_of(run, facts),
            *(f"{answer['question']} {answer['answer']}" for answer in answers),
        ],
        facts=facts,
        command=reproduction_command(run.config, run.results),
        members_json=json.dumps(run.config["asked"]["train"]["members"], indent=1),
        features=features,
        shown=shown,
        answers=answers,
        figures={name: drawn for name, drawn in sections.items() if not isinstance(drawn, str)},
        missing=missing | {name: reason for name, reason in sections.items() if isinstance(reason, str)},
    )


def saved_answers(run: FinishedRun) -> list[dict[str, Any]]:
    """The answers in study.json, with estimates in their tables. Empty if the study was not run."""
    path = run.path / "analysis" / "study.json"
    answers = read_shaped(path, STUDY_AGAIN, Study)["answers"] if path.exists() else []
    for answer in answers:
        rows = answer["table"].items()
        answer["table"] = {row: {name: Estimate(**of) for name, of in cells.items()} for row, cells in rows}
    return answers


def sentence_of(run: FinishedRun, facts: dict[str, str]) -> str:
    """What was trained on what, in a sentence."""
    kinds = ", ".join(dict.fromkeys(run.kinds.values()))
    return f"{counted(len(run.members), 'member')} ({kinds}) on {facts['model']}, {facts['hook']}: {facts['rows']}."


def facts_of(run: FinishedRun) -> dict[str, str]:
    """The model, hooks, text, rows and versions of a run, in words."""
    stores, environment, timing = run.config["stores"], run.config["environment"], run.results["timing"]
    versions = environment | stores[0].get("versions", {})
    rows = dict.fromkeys(f"{store['rows']:,}" for store in stores)
    model = source_name(stores[0]["model"], "model") + " (no model hub was in reach)" * stores[0]["model"]["fell_back"]
    model += f" with {run.request.control.replace('-', ' ')}" if run.request.control else ""
    return {
        "model": model,
        "hook": ", ".join(store["hook_name"] for store in stores),
        "text": source_name(stores[0]["dataset"], "corpus"),
        "rows": f"{' and '.join(rows)} activations"
        + (f", windows of {run.request.seq_len} tokens" if run.has_language_model else ""),
        "members": f"{len(run.members)} of {len(run.results['members'])} trained to the end",
        "steps": f"{timing['steps']:,}",
        "training": f"{timing['training_seconds']:,.0f} s on {environment['device']}",
        "versions": ", ".join(
            f"{name} {version}" for name, version in versions.items() if name not in ("backend", "device")
        ),
    }
