"""The study's five questions, answered from the measures of a population with several seeds.

The text of an answer is generated from its numbers: means over seeds with 95% intervals by Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import comb
from typing import Any

from analysis.comparison import emergence
from analysis.features.specialists import MIN_FIRINGS, RATE
from analysis.plots.comparison import estimates_chart, shared_features_chart
from analysis.plots.densities import densities_chart
from analysis.plots.training import emergence_curves, emergence_heatmap
from analysis.runs import families
from analysis.stats import FEWEST, Estimate, over_seeds
from analysis.study.measures import LABEL_MEASURES, MEASURES, PopulationMeasures

RECONSTRUCTION = ("explained_variance", "ce_recovered", "l0")
LEARNING = (*RECONSTRUCTION, "dead", "rare", "mean_activation_rate", "high_freq_neurons", "found_again")
INTERPRETABILITY = ("probing", "absorption", "one_token")
CONTROL = "random weights, "
LABEL_WORDS = {
    "specialized": "share more specialized than chance",
    "over chance": "specialization over chance",
    "information": "information over chance, mbit",
}
L0_APART = 1.1  # largest ratio of the L0 of kinds that count as equally sparse


@dataclass(frozen=True)
class Answer:
    """The answer to one question: `table` is {row: {column: estimate}}, `figures` is {file name: chart}."""

    question: str
    measured: str
    table: dict[str, dict[str, Estimate]]
    answer: str
    uncertainty: str
    not_shown: str
    figures: dict[str, Any] = field(default_factory=dict)


def study(measures: PopulationMeasures, control: PopulationMeasures | None = None) -> list[Answer]:
    """The five answers. `control` holds the measures of a run on the same model with shuffled weights."""
    questions: Iterable[Callable[[PopulationMeasures, PopulationMeasures | None], Answer]] = (
        feature_learning,
        what_drives_emergence,
        frequency_and_specialization,
        behaviour_during_training,
        interpretability,
    )
    return [question(measures, control) for question in questions]


def table_of(
    population: PopulationMeasures, measures: Iterable[str], prefix: str = ""
) -> dict[str, dict[str, Estimate]]:
    measures = list(measures)
    return {
        prefix + kind: {
            measure: over_seeds([population.values[name][measure] for name in names]) for measure in measures
        }
        for kind, names in families.by_seed(population.settings).items()
    }


def difference(measures: PopulationMeasures, measure: str, a: str, b: str) -> Estimate:
    """The mean difference of a measure between two kinds, over the seeds that both have.

    The interval is corrected for selecting the two kinds among all (see `over_seeds`).
    """
    kinds = families.by_seed(measures.settings)
    seeds = [
        {measures.settings[name]["seed"]: measures.values[name][measure] for name in kinds[kind]} for kind in (a, b)
    ]
    pairs = [(seeds[0][seed], seeds[1][seed]) for seed in seeds[0].keys() & seeds[1].keys()]
    return over_seeds([x - y for x, y in pairs if x is not None and y is not None], comb(len(kinds), 2))


def extremes(measures: PopulationMeasures, measure: str, table: dict[str, dict[str, Estimate]]) -> str:
    """A sentence on the kinds with the highest and lowest value of a measure, and whether they differ significantly."""
    known = {kind: row[measure].mean for kind, row in table.items()}
    means = {kind: mean for kind, mean in known.items() if mean is not None}
    if not means:
        return f"{words(measure)}: not measured"
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    if means[most] == means[least]:
        return f"{words(measure)}: {means[most]:z.3f} for all kinds"
    gap = difference(measures, measure, most, least)
    verdict = "" if gap.excludes_zero else " (may be chance)"
    return (
        f"{words(measure)}: highest for {most} ({means[most]:z.3f}), lowest for {least}, a difference of {gap}{verdict}"
    )


def words(measure: str) -> str:
    family, _, label = measure.partition(": ")
    return MEASURES.get(measure) or (f"{LABEL_WORDS[family]}: {label}" if label else measure)


def named(table: dict[str, dict[str, Estimate]]) -> dict[str, dict[str, Estimate]]:
    return {row: {words(measure): value for measure, value in columns.items()} for row, columns in table.items()}


def lines_of(table: dict[str, dict[str, Estimate]]) -> list[tuple[str, list[str]]]:
    """A line for each measure, with a cell for each kind: the mean over seeds with its interval."""
    measures = dict.fromkeys(measure for row in table.values() for measure in row)
    return [(words(name), [str(row[name]) if name in row else "" for row in table.values()]) for name in measures]


def activations(measures: PopulationMeasures) -> dict[str, str]:
    return {name: member["activation"] for name, member in measures.settings.items()}


def equal_l0(measures: PopulationMeasures) -> str:
    l0s = {kind: row["l0"].mean for kind, row in table_of(measures, ["l0"]).items()}
    low, high = min(l0s.values()), max(l0s.values())  # type: ignore[type-var]
    if high < L0_APART * low:  # type: ignore[operator]
        return f"At L0 {low:.1f} to {high:.1f}"
    return f"At unequal L0 ({', '.join(f'{kind} {l0:.1f}' for kind, l0 in l0s.items())}: not a fair comparison)"


def seeds_of(measures: PopulationMeasures) -> str:
    counts = sorted({len(names) for names in families.by_seed(measures.settings).values()})
    n = " to ".join(map(str, counts))
    few = " With fewer than three seeds there is no interval." if counts[0] < FEWEST else ""
    wider = (
        " The interval of a difference between the highest and the lowest kind is widened, so that it holds for all "
        "pairs of kinds."
        if len(families.by_seed(measures.settings)) > 2
        else ""
    )
    seeds = "seed" if counts == [1] else "seeds"
    return (
        f"{n} {seeds} per kind, 95% intervals over seeds by Student's t.{few}{wider} Intervals cover what the seed "
        "changes: the initial weights, and the rows that dead features are revived from. They do not cover the text: "
        "all seeds see the same rows in the same order and are measured on the same held-out documents. On other text "
        "the values may lie outside the intervals."
    )


def feature_learning(measures: PopulationMeasures, control: PopulationMeasures | None) -> Answer:
    table = table_of(measures, LEARNING)
    sentences = [
        extremes(measures, measure, table) for measure in ("explained_variance", "ce_recovered", "found_again")
    ]
    if measures.compared:
        for group in measures.compared.groups:
            sentences.append(
                f"share of matched features ({group.differ}): {group.shared.mean:.3f}, the mean of {group.pairs} "
                f"pairs of members (by chance: {group.chance.mean:.3f})"
            )
    return Answer(
        question="How do different activation functions affect feature learning?",
        measured=(
            "Held-out reconstruction and cross-entropy recovered, densities, and features shared between members "
            "(decoder rows matched one-to-one with a cosine of at least 0.7)."
        ),
        table=table,
        answer=f"{equal_l0(measures)}: {'; '.join(sentences)}.",
        uncertainty=seeds_of(measures),
        not_shown=(
            "Other widths, learning rates and lengths of training may order the kinds differently. Members with the "
            "same seed start from the same weights and therefore share more features than members with different seeds."
        ),
        figures={
            "learning": estimates_chart("Activation functions", named(table)),
            "densities": densities_chart(
                {name: member.density_F for name, member in measures.features.items()}, activations(measures)
            ),
            **({"comparison": shared_features_chart(measures.compared)} if measures.compared else {}),
        },
    )


def what_drives_emergence(measures: PopulationMeasures, control: PopulationMeasures | None) -> Answer:
    table, sentences = {}, []
    for kind, names in families.by_seed(measures.settings).items():
        known = {name: measures.trajectories[name] for name in names if name in measures.trajectories}
        table[kind] = emergence.predictors_over_seeds(known)
        sure = [
            f"{'earlier' if value.mean < 0 else 'later'} the higher its {what} ({value})"
            for what, value in table[kind].items()
            if value.mean is not None and value.excludes_zero
        ]
        unsure = [what for what, value in table[kind].items() if value.mean is not None and not value.excludes_zero]
        parts = [f"a feature emerges {', '.join(sure)}"] if sure else []
        parts += [f"no clear correlation with {', '.join(unsure)}"] if unsure else []
        none = "not measured (fewer than three snapshots, or all features emerge at the same step)"
        sentences.append(f"{kind}: {'; '.join(parts) or none}")
    return Answer(
        question="What drives concept emergence when training on transformer activations?",
        measured=(
            "Spearman's rank correlation, over living features, of the step at which a feature emerges (from then on "
            f"a decoder row has a cosine of at least {emergence.RECOGNIZABLE} to its final direction) with "
            f"{'; '.join(emergence.PREDICTORS.values())}. Negative: features with higher values emerge earlier."
        ),
        table=table,
        answer=f"{'. '.join(sentences)}.",
        uncertainty=seeds_of(measures),
        not_shown=(
            "Correlation is not causation: frequency, norm and co-occurrence depend on each other and are measured on "
            "the finished dictionary. Steps between two snapshots cannot be distinguished."
        ),
        figures={"emergence-predictors": estimates_chart("Rank correlation with the step of emergence", named(table))},
    )


def frequency_and_specialization(population: PopulationMeasures, control: PopulationMeasures | None) -> Answer:
    table: dict[str, dict[str, Estimate]] = {}
    for measures, prefix in ((population, ""), (control, CONTROL)):
        for kind, names in families.by_seed(measures.settings).items() if measures else ():
            table[prefix + kind] = {}
            for label in measures.labels if measures else ():
                pairs = [measures.frequency[name][label] for name in names] if measures else []
                table[prefix + kind][f"{label}, raw"] = over_seeds([raw for raw, _ in pairs])
                table[prefix + kind][f"{label}, over chance"] = over_seeds([over for _, over in pairs])
    sentences, kinds = [], families.by_seed(population.settings)
    for label in population.labels:
        estimates = {kind: table[kind][f"{label}, over chance"] for kind in kinds}
        sentences.append(f"{label}: {', '.join(f'{value} for {kind}' for kind, value in estimates.items())}")
    means = [abs(table[kind][f"{label}, over chance"].mean or 0) for kind in kinds for label in population.labels]
    strength = "weak" if max(means) < 0.3 else "moderate at best" if max(means) < 0.6 else "strong for some labels"
    return Answer(
        question="How reliable are activation frequency patterns as indicators of feature specialization?",
        measured=(
            "Spearman's rank correlation of a feature's density with its specialization (1 − entropy of its labels / "
            "log2 of their number, Miller–Madow corrected), raw and minus the mean with shuffled labels (over chance)."
        ),
        table=table,
        answer=f"As an indicator, frequency is {strength} (rank correlation over chance; the largest is "
        f"{max(means):.2f}). {'. '.join(sentences)}.",
        uncertainty=seeds_of(population),
        not_shown="Specialization on properties that have no label is not measured. "
        f"Features with fewer than {MIN_FIRINGS} firings are left out.",
        figures={
            "frequency": estimates_chart("Frequency and specialization: rank correlation", named(table), columns=2)
        },
    )


def behaviour_during_training(measures: PopulationMeasures, control: PopulationMeasures | None) -> Answer:
    table: dict[str, dict[str, Estimate]] = {}
    sentences = []
    for kind, names in families.by_seed(measures.settings).items():
        known = [measures.trajectories[name] for name in names if name in measures.trajectories]
        if not known:
            sentences.append(f"{kind}: fewer than three snapshots (train longer, with --snapshots), or nothing alive")
            continue
        halves = [t.steps[int((t.recognizable_S >= 0.5).argmax())] for t in known]
        table[kind] = {
            "step at which half are recognizable": over_seeds(halves),
            "recognizable at the middle snapshot": over_seeds([t.recognizable_S[len(t.steps) // 2] for t in known]),
            "births": over_seeds([int(t.births_S[1:].sum()) for t in known]),
            "deaths": over_seeds([int(t.deaths_S.sum()) for t in known]),
            "rows that split": over_seeds([int(t.splits_S[:-1].max()) for t in known]),
        }
        last = known[0].steps[-1]
        sentences.append(
            f"{kind}: half of the final features are recognizable at step "
            f"{table[kind]['step at which half are recognizable']} of {last:,}, with {table[kind]['births']} births "
            f"and {table[kind]['deaths']} deaths between snapshots"
        )
    first = next(iter(measures.trajectories), None)
    figures = {"emergence": emergence_curves(measures.trajectories, activations(measures))} if first else {}
    if first:
        figures |= {f"emergence-{first}": emergence_heatmap(first, measures.trajectories[first])}
    return Answer(
        question="Can feature behaviour during training be quantified and seen?",
        measured="Cosines of decoder rows to their final directions, and densities, in snapshots at log-spaced steps.",
        table=table,
        answer=f"{'Yes' if table else 'Not from this run'}. {'. '.join(sentences)}.",
        uncertainty=seeds_of(measures),
        not_shown=(
            "Changes between snapshots, and their causes, are not measured. Births and deaths are counted on the "
            "calibration rows."
        ),
        figures=figures,
    )


def interpretability(population: PopulationMeasures, control: PopulationMeasures | None) -> Answer:
    labels = [f"{family}: {label}" for family in LABEL_MEASURES for label in population.labels]
    measures = [*INTERPRETABILITY, *labels]
    table = table_of(population, measures)
    in_answer = [*INTERPRETABILITY, *(label for label in labels if label.startswith("over chance"))]
    sentences = [extremes(population, measure, table) for measure in in_answer]
    verdict = (
        "Whether the measures depend on what the model has learned is open: no run with shuffled weights was given "
        "(--control)."
    )
    if control:
        shuffled = table_of(control, measures, CONTROL)
        differs = {measure: intervals_differ(table, shuffled, measure) for measure in measures}
        apart, alike, unknown = ([words(m) for m in measures if differs[m] is is_so] for is_so in (True, False, None))
        verdict = (
            "Measures for which the intervals of all kinds on the trained model are above those of all kinds on the "
            f"model with shuffled weights, or all below them: {'; '.join(apart) or 'none'}."
        )
        if alike:
            verdict += (
                " For these measures, the intervals of the two models are neither all above nor all below each other: "
                f"{'; '.join(alike)}. Such a measure does not separate the two models for all kinds; the table shows "
                "each kind beside its own control."
            )
        verdict += f" No interval for at least one model: {'; '.join(unknown)}." if unknown else ""
        table |= shuffled
    return Answer(
        question="How do sparsity mechanisms affect the interpretability of features?",
        measured=(
            "Sparse probing and absorption (SAEBench), and single-token features. For each set of labels: the share of "
            f"features more specialized than chance (false discovery rate {RATE}; the share grows with the amount of "
            "text), and the mean specialization and mutual information minus those with shuffled labels."
        ),
        table=table,
        answer=f"{equal_l0(population)}: {'; '.join(sentences)}. {verdict}",
        uncertainty=seeds_of(population),
        not_shown="Whether people find the features meaningful. Absorption needs a model that can spell.",
        figures={"interpretability": estimates_chart("Interpretability", named(table))},
    )


def intervals_differ(
    trained: dict[str, dict[str, Estimate]], shuffled: dict[str, dict[str, Estimate]], measure: str
) -> bool | None:
    """Whether the intervals of all kinds on the trained model are above all those on the other, or all below them.

    Every kind is compared with every kind, not only with itself. None if an interval is missing.
    """
    lows, highs = (
        [[getattr(row[measure], end) for row in table.values()] for table in (trained, shuffled)]
        for end in ("low", "high")
    )
    if any(end is None for ends in (*lows, *highs) for end in ends):
        return None
    return min(lows[0]) > max(highs[1]) or max(highs[0]) < min(lows[1])
