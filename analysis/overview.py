"""A finished run at one look: its figures, each with what it says in words, its notable features, its five answers.

What was computed before is read; features are described where they are not yet; a comparison and the emergence are
computed where that is cheap. Whatever is missing is named in `notes`, with the command that computes it.

Shapes: F features of a dictionary, M members.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis import clustering, comparison, densities, emergence, frontier, population_figures
from analysis.contexts import token_texts
from analysis.feature_statistics import Features, features_of
from analysis.intervals import Estimate, chart
from analysis.measures import compared_of, decoders_of, trajectories_of
from analysis.notable_features import FeatureCard, cards
from analysis.run import FinishedRun
from analysis.study import named
from harvest.errors import InputError
from sae_jax.run_directory import RunDirectory
from sae_jax.snapshots import read_snapshots

CHEAP = 1e11  # multiplications, some ten seconds
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Drawn:
    """A figure, and what it shows in words made from its numbers."""

    figure: Any
    words: str


@dataclass
class Overview:
    """`pictures` by the name of their files in figures/; `cards` and `living` (of how many) by member."""

    run: FinishedRun
    pictures: dict[str, Drawn] = field(default_factory=dict)
    cards: dict[str, list[FeatureCard]] = field(default_factory=dict)
    living: dict[str, tuple[int, int]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    control: str | None = None  # the run that the answers are held against
    notes: list[str] = field(default_factory=list)

    @property
    def kinds(self) -> dict[str, str]:
        return {name: member["activation"] for name, member in self.run.members.items()}


def overview(
    run: FinishedRun,
    cache_dir: Path,
    shown: int,
    on_progress: Progress = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Overview:
    """`shown`: cards of a member at most. Only what cannot be had for want of text or model is left out, by name."""
    found = Overview(run)
    if run.members:
        from_records(found)
        try:
            features = features_of(run, list(run.members), cache_dir, on_progress, say)
        except InputError as error:
            found.notes.append(f"What features do, their densities, comparison and emergence are not shown: {error}")
        else:
            from_features(found, features, cache_dir, on_progress, say)
            with_contexts(found, features, cache_dir, shown, on_progress, say)
    answered(found)
    return found


def from_records(found: Overview) -> None:
    lines = RunDirectory(found.run.path, {}).metrics(up_to=sys.maxsize)
    members = list(found.run.members.values())
    if curves := population_figures.of_members(lines, found.run.members):
        last = {name: of[-1]["explained_variance"] for name, of in curves.items()}
        steps = max(line["step"] for line in lines)
        words = f"Explained variance on training rows after {steps:,} steps: {extremes(last)}."
        found.pictures["training"] = Drawn(population_figures.curves(lines, found.kinds), words)
    ended = {member["id"]: member["metrics"]["explained_variance"] for member in members}
    l0s = [member["metrics"]["l0"] for member in members]
    words = f"Explained variance on held-out rows: {extremes(ended)}, at L0 {min(l0s):.1f} to {max(l0s):.1f}."
    of_grid = frontier.compute(found.run.path)
    if of_grid.has_curve:
        found.pictures["frontier"] = Drawn(frontier.figure(of_grid), words)
    else:
        found.pictures["members"] = Drawn(population_figures.scatter(members), words)


def from_features(
    found: Overview,
    features: Mapping[str, Features],
    cache_dir: Path,
    on_progress: Progress,
    say: Callable[[str], None],
) -> None:
    run, kinds = found.run, found.kinds
    density_F = {name: of.density_F for name, of in features.items()}
    found.pictures["densities"] = Drawn(densities.figure(density_F, kinds), density_words(density_F))
    decoders = decoders_of(run, features)
    products = sum(decoder.W_dec_FxD.size for decoder in decoders.values())  # F·D of each
    width = sum(len(of.density_F) for of in features.values())
    known = comparison.read(run.path / "analysis", list(decoders))
    if known or products * width <= CHEAP:
        if compared := known or compared_of(run, decoders, cache_dir, on_progress, say):
            found.pictures["comparison"] = Drawn(comparison.figure(compared), comparison_words(compared))
    else:
        found.notes.append(f"The comparison of members was not computed: python main.py study {run.path}")
    snapshots = len(read_snapshots(run.path, next(iter(features))))
    if snapshots < 3:
        found.notes.append("Emergence is not shown: the run was trained with fewer than two --snapshots.")
    elif snapshots * sum(d.W_dec_FxD.size * len(d.W_dec_FxD) for d in decoders.values()) > CHEAP:
        found.notes.append(f"Emergence is not shown, as it takes long: python main.py study {run.path}")
    elif trajectories := trajectories_of(run, features, on_progress):
        first = next(iter(trajectories))
        found.pictures["emergence"] = Drawn(emergence.curves(trajectories, kinds), emergence_words(trajectories, kinds))
        words = f"The {len(trajectories[first].steps)} snapshots of {first}: how close its features are to their end."
        found.pictures[f"emergence-{first}"] = Drawn(emergence.heatmap(first, trajectories[first]), words)


def with_contexts(
    found: Overview,
    features: Mapping[str, Features],
    cache_dir: Path,
    shown: int,
    on_progress: Progress,
    say: Callable[[str], None],
) -> None:
    run, folder = found.run, found.run.path / "analysis"
    tokenizer = run.language_model.tokenizer
    compared = comparison.read(folder, [name for name, of in features.items() if of.alive_F.any()])
    again_F, others = (compared.found_again_F, compared.other_seeds) if compared else ({}, {})
    for done, (name, of) in enumerate(features.items()):
        store = run.store(run.site(name), cache_dir, on_progress, say)
        found.cards[name] = cards(of, store, tokenizer, shown, again_F.get(name), others.get(name, 0))
        found.living[name] = int(of.alive_F.sum()), len(of.alive_F)
        if (folder / f"clusters-{name}.npz").exists():
            promoted = [token_texts(tokenizer, tokens_T) for tokens_T in of.promoted_FxT]
            if clusters := clustering.read(folder, name, promoted):
                found.pictures[f"clusters-{name}"] = Drawn(clustering.figure(clusters), cluster_words(name, clusters))
        on_progress("contexts of members", done + 1, len(features))
    if not any(stem.startswith("clusters-") for stem in found.pictures):
        found.notes.append(f"No map of clusters was drawn: python main.py study {run.path}")


def answered(found: Overview) -> None:
    path = found.run.path / "analysis" / "study.json"
    if not path.exists():
        found.notes.append(f"The five questions were not asked: python main.py study {found.run.path}")
        return
    record = json.loads(path.read_text())
    found.control = record["control"]
    for number, answer in enumerate(record["answers"], 1):
        answer["table"] = {
            row: {column: Estimate(**value) for column, value in columns.items()}
            for row, columns in answer["table"].items()
        }
        found.answers.append(answer)
        if any(of.mean is not None for columns in answer["table"].values() for of in columns.values()) and number != 4:
            figure = chart(f"Question {number}", named(answer["table"]))
            found.pictures[f"answer-{number}"] = Drawn(figure, f"The table below, drawn. {answer['answer']}")


def extremes(values: Mapping[str, float | None]) -> str:
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return "not known"
    least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if len(known) == 1:
        return f"{known[most]:.3f} ({most})"
    return f"{known[least]:.3f} ({least}) to {known[most]:.3f} ({most})"


def density_words(density_F: Mapping[str, np.ndarray]) -> str:
    every = np.concatenate(list(density_F.values()))
    dead = {name: int((own_F == 0).sum()) for name, own_F in density_F.items()}
    worst = max(dead, key=dead.__getitem__)
    most = f", most in {worst} ({dead[worst]:,})" if dead[worst] else ""
    alive = f"the living fire on {np.median(every[every > 0]):.2%} of the rows in the median" if every.any() else ""
    return f"Dead, firing on no row: {sum(dead.values()):,} of {len(every):,} features{most}; {alive or 'none lives'}."


def comparison_words(compared: comparison.Comparison) -> str:
    groups = [
        f"{group.differ}: {group.shared.mean:.1%} (chance {group.chance.mean:.1%}, {group.pairs} pairs)"
        for group in compared.groups
    ]
    return f"Living features that two members have in common, mean over pairs with {'; '.join(groups)}."


def emergence_words(trajectories: Mapping[str, emergence.Trajectory], kinds: Mapping[str, str]) -> str:
    halves: dict[str, list[int]] = {}
    for name, of in trajectories.items():
        halves.setdefault(kinds[name], []).append(of.steps[int((of.recognizable_S >= 0.5).argmax())])
    parts = [
        f"{kind} {min(steps):,}" + (f" to {max(steps):,}" if max(steps) > min(steps) else "")
        for kind, steps in halves.items()
    ]
    last = next(iter(trajectories.values())).steps[-1]
    return f"Step of {last:,} at which half of the final features are recognizable: {', '.join(parts)}."


def cluster_words(name: str, clusters: clustering.Clusters) -> str:
    largest = [f"{own} ({size})" for own, size in zip(clusters.names, clusters.sizes, strict=True)][:3]
    told = f", the largest {'; '.join(largest)}" if largest else ""
    return f"{name}: {len(clusters.names)} clusters of directions{told}; {clusters.noise:.0%} of features in none."
