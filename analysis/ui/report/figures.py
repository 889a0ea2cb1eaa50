"""The figures of a report, each with a description in words that is generated from its numbers.

A section without a figure is a text instead: why there is none, and which command helps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.comparison import frontier, shared_features
from analysis.comparison.clusters import NO_CLUSTER, read_clusters
from analysis.features.contexts import printable, token_texts
from analysis.features.statistics import Features
from analysis.plots.comparison import shared_features_chart
from analysis.plots.densities import densities_chart
from analysis.plots.feature_map import clusters_chart
from analysis.plots.frontier import frontier_chart, members_chart
from analysis.plots.training import emergence_curves, emergence_heatmap, training_curves_chart
from analysis.runs.finished import TRAIN_AGAIN, FinishedRun
from analysis.study.charts import answer_charts
from analysis.study.measures import decoders_of, trajectories_of
from analysis.study.tables import lines_of
from analysis.ui.terminal.screen import BEST
from analysis.ui.terminal.wording import counted
from harvest.errors import InputError
from sae_jax.best_member import best_members_of_results

CHEAP = 3e8  # pairs of features that can be compared within a minute


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure. `alt` is a description in words, generated from its numbers."""

    name: str  # the NAME of figures/NAME.svg
    figure: Any
    alt: str


Section = list[Drawn] | str  # the figures, or why there are none


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
    best = best_members_of_results(members)
    alt = (
        f"Explained variance against L0 of {counted(len(members), 'member')}: "
        f"{span(ranges['explained_variance'], '.3f')} at L0 {span(ranges['l0'], '.1f')}."
    )
    alt += f" {BEST[0].upper()}{BEST[1:]}: {', '.join(name for name in members if name in best)}." if best else ""
    return Drawn("pareto", drawn, alt)


def training(run: FinishedRun, say: Callable[[str], None]) -> Section:
    try:
        curves = run.curves()
        if unknown := curves.keys() - run.kinds.keys():
            raise InputError(
                f"{run.path / 'metrics.jsonl'} has lines of {min(unknown)}, which is not in results.json: {TRAIN_AGAIN}"
            )
    except InputError as error:
        reason = f"How it was trained is not shown: {error}"
        say(reason)
        return reason
    ends = [lines[-1]["explained_variance"] for lines in curves.values() if "explained_variance" in lines[-1]]
    last = max((lines[-1]["step"] for lines in curves.values()), default=0)
    alt = f"Loss and explained variance of {counted(len(curves), 'member')} over {counted(int(last), 'step')}"
    before = ", before the decoder is fitted" if run.fitted else ""
    alt += f"; explained variance ends at {span(ends, '.3f')}{before}." if ends else "."
    return [Drawn("training", training_curves_chart(curves, run.kinds, run.fitted), alt)]


def densities(run: FinishedRun, features: dict[str, Features]) -> Section:
    chart = densities_chart({name: member.density_F for name, member in features.items()}, run.kinds)
    medians = [
        float(np.median(member.density_F[member.alive_F])) for member in features.values() if member.alive_F.any()
    ]
    alt = f"Histogram of how often features fire, in {counted(len(features), 'member')}"
    alt += f"; the median living feature fires on {span(medians, '.1%')} of the rows." if medians else "; none does."
    return [Drawn("densities", chart, alt)]


def features_in_common(run: FinishedRun, features: dict[str, Features], study: str) -> Section:
    """The comparison of the study, or, if there is none, a comparison by direction alone."""
    living = [name for name, member in features.items() if member.alive_F.any()]
    if len(living) < 2:
        return "A comparison needs two or more members with living features."
    compared = shared_features.read_shared_features(run.path / "analysis", list(run.members))
    if not compared:
        if sum(len(features[name].density_F) for name in living) ** 2 > CHEAP:
            return f"The members were not compared yet, which is slow: run {study}"
        dead = [name for name in features if name not in living]
        compared = shared_features.compute_shared_features(decoders_of(run, features), dead=dead)
    others = ~np.eye(len(compared.members), dtype=bool)
    shared, chance = compared.shared_MxM[others], compared.chance_MxM[others]
    alt = (
        f"Matched features of {len(compared.members)} members: between two members, "
        f"{span(shared.tolist(), '.1%')} of the features of one are found in the other ({shared.mean():.1%} on "
        f"average; {chance.mean():.1%} by chance)."
    )
    if compared.groups:
        means = (f"{of.differ} {of.shared.mean:.1%} ({counted(of.pairs, 'pair')})" for of in compared.groups)
        alt += f" Averages by what differs between the two: {', '.join(means)}."
    seeds = [run.members[name]["seed"] for name in compared.members]
    if len(set(seeds)) < len(seeds):
        alt += " Members with the same seed start from the same decoder, so they are more alike after a short training."
    return [Drawn("comparison", shared_features_chart(compared), alt)]


def emergence(run: FinishedRun, features: dict[str, Features]) -> Section:
    """The emergence curves of all members, and a heatmap of the features of the first member."""
    trajectories = trajectories_of(run, features)
    if not trajectories:
        return "There are fewer than three snapshots: train with --snapshots 10 (the default), or longer."
    first, trajectory = next(iter(trajectories.items()))
    middle = [float(one.recognizable_S[len(one.steps) // 2]) for one in trajectories.values()]
    alt = (
        f"Share of the final features that are recognizable in snapshots at {len(trajectory.steps)} steps: "
        f"{span(middle, '.1%')} at step {trajectory.steps[len(trajectory.steps) // 2]:,} of {trajectory.steps[-1]:,}."
    )
    half = int(np.median(trajectory.emerged_F[trajectory.alive_F]))
    cosines = f"Cosine of the features of {first} to their final directions; half emerged by step {half:,}."
    return [
        Drawn("emergence", emergence_curves(trajectories, run.kinds), alt),
        Drawn(f"emergence-{first}", emergence_heatmap(first, trajectory), cosines),
    ]


def clusters_of_features(run: FinishedRun, features: dict[str, Features], study: str) -> tuple[list[Drawn], str]:
    """(the maps of clusters that a study wrote, a sentence about the members without a map)."""
    drawn, without, folder = [], [], run.path / "analysis"
    for name, member in features.items():
        if not (folder / f"clusters-{name}.json").exists():
            continue
        promoted = [token_texts(run.tokenizer, tokens) for tokens in member.promoted_FxT]
        if not (clusters := read_clusters(folder, name, promoted)):
            continue
        if not clusters.sizes:
            without.append(name)
            continue
        alt = (
            f"Map of the {counted(clusters.alive, 'living feature')} of {name}: "
            f"{counted(len(clusters.sizes), 'cluster')}, the largest of {clusters.sizes[0]} around "
            f"{printable(clusters.names[0])}; {clusters.noise:.0%} of the features are in none."
        )
        drawn.append(Drawn(f"clusters-{name}", clusters_chart(clusters), alt))
    if without:
        return drawn, f"In {', '.join(without)}, {NO_CLUSTER}."
    return drawn, "" if drawn else f"There is no map of clusters yet: run {study}"


def answered(number: int, answer: dict[str, Any]) -> list[Drawn]:
    """The chart of the table of an answer."""
    table = answer["table"]
    has_intervals = any(value.low is not None for row in table.values() for value in row.values())
    what = "Means and 95% intervals" if has_intervals else "Means"
    alt = f"{what} of {counted(len(lines_of(table)), 'measure')} of {', '.join(table)}: the numbers of the table."
    return [Drawn(name, chart, alt) for name, chart in answer_charts(number, table, answer.get("kinds", {})).items()]


def span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
