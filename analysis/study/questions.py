"""The study's five questions, answered from the measures of a population with several seeds.

The text of an answer is generated from its numbers: means over seeds with 95% intervals by Student's t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.comparison import emergence
from analysis.features.specialists import MIN_FIRINGS, RATE
from analysis.plots.comparison import shared_features_chart
from analysis.plots.densities import densities_chart
from analysis.plots.training import emergence_curves, emergence_heatmap
from analysis.stats import over_seeds
from analysis.study.charts import answer_charts
from analysis.study.measures import LABEL_MEASURES, PopulationMeasures
from analysis.study.tables import (
    ABOVE,
    BELOW,
    OVERLAP,
    UNKNOWN,
    Table,
    beside_control,
    compared,
    in_short,
    seeds_of,
    table_of,
    words,
)

RECONSTRUCTION = ("explained_variance", "ce_recovered", "l0")
LEARNING = (*RECONSTRUCTION, "dead", "rare", "mean_activation_rate", "high_freq_neurons", "found_again")
INTERPRETABILITY = ("probing", "absorption", "one_token")
LACKING = "fewer than three snapshots (train longer, with --snapshots), or nothing alive"
NO_EMERGENCE = "fewer than three snapshots, or all features emerge at the same step"
CONTROL = "random weights, "  # stands before the families of the control run


@dataclass(frozen=True)
class Answer:
    """The answer to one question: `table` is {row: {column: estimate}}, `figures` is {file name: chart}.

    `kinds` has the kind of each row.

    `answer` is a sentence or two; `findings` are sentences on what the table does not show at once.
    """

    question: str
    answer: str
    findings: list[str]
    measured: str
    table: Table
    kinds: dict[str, str]
    uncertainty: str
    not_shown: str
    figures: dict[str, Any]


def study(measures: PopulationMeasures, control: PopulationMeasures | None) -> list[Answer]:
    """The five answers. `control` holds the measures of a run on the same model with shuffled weights."""
    return [
        feature_learning(measures),
        what_drives_emergence(measures),
        frequency_and_specialization(measures, control),
        behaviour_during_training(measures),
        interpretability(measures, control),
    ]


def feature_learning(measures: PopulationMeasures) -> Answer:
    table = table_of(measures, LEARNING)
    findings = compared(measures, ("ce_recovered", "found_again")) if len(measures.families) > 1 else []
    if measures.compared:
        findings += [
            f"Share of matched features ({group.differ}): {group.shared.mean:.1%}, the mean of {group.pairs} "
            f"{'pair' if group.pairs == 1 else 'pairs'} of members (by chance: {group.chance.mean:.1%})."
            for group in measures.compared.groups
            if " and " not in group.differ  # the others are in the figure
        ]
    return Answer(
        question="How do different activation functions affect feature learning?",
        answer=" ".join(compared(measures, ["explained_variance"])),
        findings=findings,
        measured=(
            "Held-out reconstruction and cross-entropy recovered, densities, and features shared between members "
            "(decoder rows matched one-to-one with a cosine of at least 0.7)."
        ),
        table=table,
        kinds=measures.kinds,
        uncertainty=seeds_of(measures),
        not_shown=(
            "Other widths, learning rates and lengths of training may order the kinds differently. Members with the "
            "same seed start from the same weights and therefore share more features than members with different seeds."
        ),
        figures={
            **answer_charts(1, table, measures.kinds),
            "densities": densities_chart(
                {name: member.density_F for name, member in measures.features.items()}, measures.run.kinds
            ),
            **({"comparison": shared_features_chart(measures.compared)} if measures.compared else {}),
        },
    )


def what_drives_emergence(measures: PopulationMeasures) -> Answer:
    table = {
        family: emergence.predictors_over_seeds(
            {name: measures.trajectories[name] for name in names if name in measures.trajectories}
        )
        for family, names in measures.families.items()
    }
    unknown = [family for family, row in table.items() if all(value.mean is None for value in row.values())]
    return Answer(
        question="What drives concept emergence when training on transformer activations?",
        answer=f"{emergence_in_short(table)}.",
        findings=[f"Not measured for {', '.join(unknown)}: {NO_EMERGENCE}."] if 0 < len(unknown) < len(table) else [],
        measured=(
            "Spearman's rank correlation, over living features, of the step at which a feature emerges (from then on "
            f"a decoder row has a cosine of at least {emergence.RECOGNIZABLE} to its final direction) with "
            f"{'; '.join(emergence.PREDICTORS.values())}. Negative: features with higher values emerge earlier."
        ),
        table=table,
        kinds=measures.kinds,
        uncertainty=seeds_of(measures),
        not_shown=(
            "Correlation is not causation: frequency, norm and co-occurrence depend on each other and are measured on "
            "the finished dictionary. Steps between two snapshots cannot be distinguished."
        ),
        figures=answer_charts(2, table, measures.kinds),
    )


def emergence_in_short(table: Table) -> str:
    """In which families each predictor is clearly correlated with the step of emergence."""
    parts = []
    for what in dict.fromkeys(what for row in table.values() for what in row):
        sure = {family: row[what] for family, row in table.items() if what in row and row[what].excludes_zero}
        for word, sign in (("earlier", -1), ("later", 1)):
            if families := [family for family, value in sure.items() if (value.mean or 0) * sign > 0]:
                where = "all families" if len(families) == len(table) else ", ".join(families)
                parts.append(f"{word} with a higher {what} (in {where})")
    none = "No predictor is clearly correlated with the step at which a feature emerges"
    values = [value for row in table.values() for value in row.values() if value.mean is not None]
    if not values:
        none = f"Not measured: {NO_EMERGENCE}"
    elif all(value.low is None for value in values):
        none = "Not known: intervals need three seeds"
    return f"Features emerge {'; '.join(parts)}" if parts else none


def frequency_and_specialization(population: PopulationMeasures, control: PopulationMeasures | None) -> Answer:
    table: Table = {}
    populations = {"": population} | ({CONTROL: control} if control else {})
    kinds = kinds_of(population, control)
    for prefix, measures in populations.items():
        for family, names in measures.families.items() if measures.labels else ():
            table[prefix + family] = {}
            for label in measures.labels:
                pairs = [measures.frequency[name][label] for name in names]
                table[prefix + family][f"{label}, raw"] = over_seeds([raw for raw, _ in pairs])
                table[prefix + family][f"{label}, over chance"] = over_seeds([over for _, over in pairs])
    columns = [f"{label}, over chance" for label in population.labels]
    estimates = [table[family][column] for family in population.families for column in columns]
    means, unsure = [value.mean or 0 for value in estimates], any(value.low is None for value in estimates)
    short = "Specialization is not measured, because the rows have no labels."
    if means:
        largest = max(means, key=abs)
        strength = (
            "weak" if abs(largest) < 0.3 else "moderate at best" if abs(largest) < 0.6 else "strong for some labels"
        )
        short = (
            f"As an indicator, frequency is {strength} (rank correlation over chance; the strongest is {largest:.2f})."
        )
        short += " Intervals need three seeds, so this may be chance." if unsure else ""
    return Answer(
        question="How reliable are activation frequency patterns as indicators of feature specialization?",
        answer=short,
        findings=[],
        measured=(
            "Spearman's rank correlation of a feature's density with its specialization (1 − entropy of its labels / "
            "log2 of their number, Miller–Madow corrected), raw and minus the mean with shuffled labels (over chance)."
        ),
        table=table,
        kinds=kinds,
        uncertainty=seeds_of(population),
        not_shown="Specialization on properties that have no label is not measured. "
        f"Features with fewer than {MIN_FIRINGS} firings are left out.",
        figures=answer_charts(3, table, kinds),
    )


def behaviour_during_training(measures: PopulationMeasures) -> Answer:
    table: Table = {}
    lacking = []
    for family, names in measures.families.items():
        known = [measures.trajectories[name] for name in names if name in measures.trajectories]
        if not known:
            lacking.append(family)
            continue
        halves = [t.steps[int((t.recognizable_S >= 0.5).argmax())] for t in known]
        table[family] = {
            "step at which half are recognizable": over_seeds(halves),
            "recognizable at the middle snapshot": over_seeds([t.recognizable_S[len(t.steps) // 2] for t in known]),
            "births": over_seeds([int(t.births_S[1:].sum()) for t in known]),
            "deaths": over_seeds([int(t.deaths_S.sum()) for t in known]),
            "rows that split": over_seeds([int(t.splits_S[:-1].max()) for t in known]),
        }
    steps = [row["step at which half are recognizable"].mean or 0 for row in table.values()]
    short = "Features cannot be followed in this run: it has fewer than three snapshots, or no living features."
    if steps:
        reached = f"{min(steps):,.0f}" if min(steps) == max(steps) else f"{min(steps):,.0f} to {max(steps):,.0f}"
        last = max(trajectory.steps[-1] for trajectory in measures.trajectories.values())
        short = f"Yes: half of the final features are recognizable by step {reached} of {last:,}."
        if not max(steps):
            short = "Hardly: half of the final features are recognizable from the start on, before they have learned."
        elif max(steps) <= min(trajectory.steps[1] for trajectory in measures.trajectories.values()):
            short += " This is the first snapshot after the start, so it may be earlier (more --snapshots show it, as "
            short += "long as the run has as many blocks, see --block-steps)."
    figures = answer_charts(4, table, measures.kinds)
    if first := next(iter(measures.trajectories), None):
        figures["emergence"] = emergence_curves(measures.trajectories, measures.run.kinds)
        figures[f"emergence-{first}"] = emergence_heatmap(first, measures.trajectories[first])
    return Answer(
        question="Can feature behaviour during training be quantified and seen?",
        answer=short,
        findings=[f"Not followed: {', '.join(lacking)}: {LACKING}."] if lacking else [],
        measured="Cosines of decoder rows to their final directions, and densities, in snapshots at log-spaced steps.",
        table=table,
        kinds=measures.kinds,
        uncertainty=seeds_of(measures),
        not_shown=(
            "Changes between snapshots, and their causes, are not measured. Births and deaths are counted on the "
            "calibration rows."
        ),
        figures=figures,
    )


def interpretability(population: PopulationMeasures, control: PopulationMeasures | None) -> Answer:
    labels = [f"{score}: {label}" for score in LABEL_MEASURES for label in population.labels]
    measures = [*INTERPRETABILITY, *labels]
    table, kinds = table_of(population, measures), kinds_of(population, control)
    in_answer = [*INTERPRETABILITY, *(label for label in labels if label.startswith("over chance"))]
    sentences = compared(population, in_answer)
    counted = [measure for measure in in_answer if measure != "absorption"]  # of which less is better
    answer = in_short(population, counted) or sentences[0]
    verdicts = ["Whether the measures depend on what the model has learned is open: no --control was given."]
    if control:
        shuffled = table_of(control, measures, CONTROL)
        by_side: dict[str, list[str]] = {side: [] for side in (ABOVE, BELOW, OVERLAP, UNKNOWN)}
        for measure in measures:
            by_side[beside_control(table, shuffled, measure)].append(words(measure))
        verdicts = [f"{side}: {'; '.join(found)}." for side, found in by_side.items() if found]
        table |= shuffled
    return Answer(
        question="How do sparsity mechanisms affect the interpretability of features?",
        answer=answer,
        findings=[*(sentence for sentence in sentences if sentence != answer), *verdicts],
        measured=(
            "Sparse probing and absorption (SAEBench), and single-token features. For each set of labels: the share of "
            f"features more specialized than chance (false discovery rate {RATE}; the share grows with the amount of "
            "text), and the mean specialization and mutual information minus those with shuffled labels."
        ),
        table=table,
        kinds=kinds,
        uncertainty=seeds_of(population),
        not_shown="Whether people find the features meaningful is not measured. Absorption needs a model that spells.",
        figures=answer_charts(5, table, kinds),
    )


def kinds_of(population: PopulationMeasures, control: PopulationMeasures | None) -> dict[str, str]:
    """The kind of each family, also of those of the control."""
    return population.kinds | ({CONTROL + family: kind for family, kind in control.kinds.items()} if control else {})
