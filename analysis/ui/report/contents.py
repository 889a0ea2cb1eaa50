"""The content of a report of finished runs: saved results, and results that are fast to compute.

Slow results that are missing are not computed: `missing` says why a section is empty, and which command fills it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.comparison import emergence, frontier, shared_features
from analysis.comparison.clusters import read_clusters
from analysis.comparison.matching import Decoder
from analysis.features.contexts import printable, token_texts
from analysis.features.statistics import Features, load_or_compute_features
from analysis.pages.highlights import Highlight, highlights
from analysis.plots.comparison import estimates_chart, shared_features_chart
from analysis.plots.densities import densities_chart
from analysis.plots.feature_map import clusters_chart
from analysis.plots.frontier import frontier_chart, members_chart
from analysis.plots.training import emergence_curves, emergence_heatmap, training_curves_chart
from analysis.runs import families
from analysis.runs.best_member import best_of_results
from analysis.runs.curves import read_curves
from analysis.runs.families import source_name
from analysis.runs.finished import STUDY_AGAIN, TRAIN_AGAIN, FinishedRun
from analysis.runs.reproduce import reproduction_command
from analysis.runs.shapes import Study
from analysis.stats import Estimate
from analysis.study.questions import lines_of, named
from harvest.errors import InputError
from sae_jax.shapes import read_shaped
from sae_jax.training.snapshots import read_snapshots

SHOWN = 384  # features in total, but from LEAST to MOST for each member
LEAST, MOST = 8, 24
CHEAP = 3e8  # pairs of features that can be compared within a minute


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure. `alt` is a description in words, generated from its numbers."""

    name: str  # the NAME of figures/NAME.svg
    figure: Any
    alt: str


@dataclass(frozen=True)
class Part:
    """The content about one run. `figures` and `missing` are by section, `answers` are those of study.json."""

    run: FinishedRun
    is_control: bool
    facts: dict[str, str]
    command: str
    members_json: str  # the content of the members' file, if there is one
    features: dict[str, Features]
    shown: dict[str, list[Highlight]]
    answers: list[dict[str, Any]]
    figures: dict[str, list[Drawn]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
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
    count, frontier_drawn = min(MOST, max(LEAST, SHOWN // max(1, members))), pareto(everything)
    parts = [part_of(run, run is control, count, cache_dir, on_progress, say) for run in everything]
    return Report(frontier_drawn, parts)


def pareto(runs: Sequence[FinishedRun]) -> Drawn | None:
    members = {
        f"{run.path.resolve().name}: {name}" if len(runs) > 1 else name: member
        for run in runs
        for name, member in run.members.items()
        if member["metrics"]
    }
    if not members:
        return None
    of_grid = frontier.compute_frontier(*(run.path for run in runs))
    drawn = frontier_chart(of_grid) if of_grid.has_curve else members_chart(members)
    ranges = {name: [member["metrics"][name] for member in members.values()] for name in ("explained_variance", "l0")}
    best = best_of_results([member | {"id": name} for name, member in members.items()])
    alt = (
        f"Explained variance against L0 of {len(members)} members: {span(ranges['explained_variance'], '.3f')} "
        f"at L0 {span(ranges['l0'], '.1f')}."
    )
    alt += f" {best['id']} explains most among the members on target." if best else ""
    return Drawn("report-pareto", drawn, alt)


def part_of(
    run: FinishedRun,
    is_control: bool,
    count: int,
    cache_dir: Path,
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> Part:
    features, shown, missing = {}, {}, {}
    members, study = list(run.members), f"python main.py study {run.path}"
    if not members:
        missing["features"] = "All members failed: there are no features to show."
    try:
        features = load_or_compute_features(run, members, cache_dir, on_progress, say)
        for number, (name, statistics) in enumerate(features.items(), 1):
            store = run.store(run.site(name), cache_dir, on_progress, say)
            shown[name] = highlights(statistics, count, store, run.language_model.tokenizer)
            on_progress("examples", number, len(features))
    except InputError as error:
        missing["features"] = f"What the features do is not shown: {error}"
        say(missing["features"])
    path, answers = run.path / "analysis" / "study.json", []
    if path.exists():
        for answer in read_shaped(path, STUDY_AGAIN, Study)["answers"]:
            rows = answer["table"].items()
            table = {row: {name: Estimate(**of) for name, of in cells.items()} for row, cells in rows}
            answers.append(answer | {"table": table})
    else:
        missing["study"] = f"The study was not run: {study}"
    part = Part(
        run=run,
        is_control=is_control,
        facts=facts_of(run),
        command=reproduction_command(run.config, run.results),
        members_json=json.dumps(run.config["asked"]["train"]["members"], indent=1),
        features=features,
        shown=shown,
        answers=answers,
        missing=missing,
    )
    kinds = {member["id"]: member["activation"] for member in run.results["members"]}
    for number, answer in enumerate(answers, 1):
        part.figures[f"study-{number}"] = answered(number, answer)
    try:
        curves = read_curves(run)
        if unknown := curves.keys() - kinds.keys():
            raise InputError(
                f"{run.path / 'metrics.jsonl'} has lines of {min(unknown)}, which is not in results.json: {TRAIN_AGAIN}"
            )
        part.figures["training"] = [training(curves, kinds)]
    except InputError as error:
        missing["training"] = f"How it was trained is not shown: {error}"
        say(missing["training"])
    if features:
        part.figures["densities"] = [of_densities(features, kinds)]
        part.figures["comparison"] = in_common(part, study)
        part.figures["emergence"] = emerged(part, kinds)
        part.figures["clusters"] = mapped(part, study)
    return part


def facts_of(run: FinishedRun) -> dict[str, str]:
    """The model, hooks, text, rows and versions of a run, in words."""
    stores, environment, timing = run.config["stores"], run.config["environment"], run.results["timing"]
    versions = environment | stores[0].get("versions", {})
    rows = dict.fromkeys(f"{store['rows']:,}" for store in stores)
    fallback = " (no model hub was in reach)" if stores[0]["model"]["fell_back"] else ""
    facts = {
        "model": source_name(stores[0]["model"], "model") + fallback,
        "hook": ", ".join(store["hook_name"] for store in stores),
        "text": source_name(stores[0]["dataset"], "corpus"),
        "rows": f"{' and '.join(rows)} activations, windows of {run.request.seq_len} tokens",
        "members": f"{len(run.members)} of {len(run.results['members'])} trained to the end",
        "steps": f"{timing['steps']:,}",
        "training": f"{timing['training_seconds']:,.0f} s on {environment['device']}",
        "versions": ", ".join(
            f"{name} {version}" for name, version in versions.items() if name not in ("backend", "device")
        ),
    }
    return facts | ({"control": run.request.control} if run.request.control else {})


def training(curves: dict[str, list[dict[str, float]]], kinds: dict[str, str]) -> Drawn:
    ends = [lines[-1]["explained_variance"] for lines in curves.values() if "explained_variance" in lines[-1]]
    last = max((lines[-1]["step"] for lines in curves.values()), default=0)
    alt = f"Loss and explained variance of {len(curves)} members over {last:,} steps"
    alt += f"; explained variance ends at {span(ends, '.3f')}." if ends else "."
    return Drawn("report-training", training_curves_chart(curves, kinds), alt)


def of_densities(features: dict[str, Features], kinds: dict[str, str]) -> Drawn:
    drawn = densities_chart({name: member.density_F for name, member in features.items()}, kinds)
    medians = [
        float(np.median(member.density_F[member.alive_F])) for member in features.values() if member.alive_F.any()
    ]
    alt = f"Histogram of how often features fire, in {len(features)} members"
    alt += f"; the median living feature fires on {span(medians, '.3%')} of the rows." if medians else "; none does."
    return Drawn("report-densities", drawn, alt)


def in_common(part: Part, study: str) -> list[Drawn]:
    """The comparison of the study, or, if there is none, a comparison by direction alone."""
    run = part.run
    living = {name: features for name, features in part.features.items() if features.alive_F.any()}
    if len(living) < 2:
        part.missing["comparison"] = "A comparison needs two or more members with living features."
        return []
    compared = shared_features.read_shared_features(run.path / "analysis", list(run.members))
    if not compared:
        if sum(len(features.density_F) for features in living.values()) ** 2 > CHEAP:
            part.missing["comparison"] = f"The members were not compared yet, which is slow: run {study}"
            return []
        settings = {name: families.settings_of(run, run.members[name]) for name in living}
        compared = shared_features.compute_shared_features(
            {
                name: Decoder(settings[name], run.dictionary(name).tensors["W_dec"], features.alive_F)
                for name, features in living.items()
            },
            dead=[name for name in part.features if name not in living],
        )
    others = ~np.eye(len(compared.members), dtype=bool)
    shared, chance = compared.shared_MxM[others], compared.chance_MxM[others]
    alt = (
        f"Matched features of {len(compared.members)} members: between two members, "
        f"{span(shared.tolist(), '.1%')} of the features of one are found in the other ({shared.mean():.1%} on "
        f"average; {chance.mean():.1%} by chance). "
        + "; ".join(f"{group.differ}: {group.shared.mean:.1%} over {group.pairs} pairs" for group in compared.groups)
    )
    return [Drawn("report-comparison", shared_features_chart(compared), f"{alt}.")]


def emerged(part: Part, kinds: dict[str, str]) -> list[Drawn]:
    """The emergence curves of all members, and a heatmap of the features of the first member."""
    trajectories = {}
    for name, features in part.features.items():
        if features.alive_F.any() and len(snapshots := read_snapshots(part.run.path, name)) > 2:
            trajectories[name] = emergence.compute_emergence(snapshots, features)
    if not trajectories:
        part.missing["emergence"] = (
            "There are fewer than three snapshots: train with --snapshots 10 (the default), or longer."
        )
        return []
    first, trajectory = next(iter(trajectories.items()))
    middle = [float(one.recognizable_S[len(one.steps) // 2]) for one in trajectories.values()]
    alt = (
        f"Share of the final features that are recognizable in snapshots at {len(trajectory.steps)} steps: "
        f"{span(middle, '.1%')} at step {trajectory.steps[len(trajectory.steps) // 2]:,} of {trajectory.steps[-1]:,}."
    )
    half = int(np.median(trajectory.emerged_F[trajectory.alive_F]))
    cosines = f"Cosine of the features of {first} to their final directions; half emerged by step {half:,}."
    return [
        Drawn("report-emergence", emergence_curves(trajectories, kinds), alt),
        Drawn(f"report-emergence-{first}", emergence_heatmap(first, trajectory), cosines),
    ]


def mapped(part: Part, study: str) -> list[Drawn]:
    """The maps of clusters that a study wrote."""
    drawn = []
    for name, features in part.features.items():
        folder = part.run.path / "analysis"
        if not (folder / f"clusters-{name}.json").exists():
            continue
        promoted = [token_texts(part.run.language_model.tokenizer, tokens) for tokens in features.promoted_FxT]
        if clusters := read_clusters(folder, name, promoted):
            largest = (
                f", the largest of {clusters.sizes[0]} around {printable(clusters.names[0])}" if clusters.sizes else ""
            )
            counted = "1 cluster" if len(clusters.sizes) == 1 else f"{len(clusters.sizes)} clusters"
            alt = f"Map of the {clusters.alive:,} living features of {name}: {counted}{largest}; "
            alt += f"{clusters.noise:.0%} of the features are in none."
            drawn.append(Drawn(f"report-clusters-{name}", clusters_chart(clusters), alt))
    if not drawn:
        part.missing["clusters"] = f"There is no map of clusters yet: run {study}"
    return drawn


def answered(number: int, answer: dict[str, Any]) -> list[Drawn]:
    """A chart of the table of an answer."""
    if not (table := answer["table"]):
        return []
    measures = len(lines_of(table))
    alt = f"Means and 95% intervals of {measures} measures of {', '.join(table)}: the numbers of the table."
    return [Drawn(f"report-question-{number}", estimates_chart(f"Question {number}", named(table)), alt)]


def span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
