"""Tables of means over seeds with their intervals, and sentences about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from analysis.stats import FEWEST, Estimate, over_seeds
from analysis.study.measures import MEASURES, PopulationMeasures

Table = dict[str, dict[str, Estimate]]  # {family: {measure: estimate}}

LABEL_WORDS = {
    "specialized": "share more specialized than chance",
    "over chance": "specialization over chance",
    "information": "information over chance, mbit",
}
ONE_FAMILY = "There is only one family of members, so there is nothing to compare."
NOT_MEASURED, MEASURED_ONCE = "Not measured", "Measured for one family only"
NOT_FAIR = "no fair comparison"
L0_APART = 1.1  # largest ratio of the L0 of families that count as equally sparse


def table_of(population: PopulationMeasures, measures: Sequence[str], prefix: str = "") -> Table:
    """The mean of each measure over the seeds of each family. `prefix` stands before the names of the families."""
    return {
        prefix + family: {
            measure: over_seeds([population.values[name][measure] for name in names]) for measure in measures
        }
        for family, names in population.families.items()
    }


def difference(measures: PopulationMeasures, measure: str, a: str, b: str, pairs: int) -> Estimate:
    """The mean difference of a measure between two families, over the seeds that both have.

    The interval is corrected for selecting the two families among so many pairs (see `over_seeds`).
    """
    seeds = [
        {measures.settings[name]["seed"]: measures.values[name][measure] for name in measures.families[family]}
        for family in (a, b)
    ]
    both = [(seeds[0][seed], seeds[1][seed]) for seed in seeds[0].keys() & seeds[1].keys()]
    return over_seeds([x - y for x, y in both if x is not None and y is not None], pairs)


def compared(measures: PopulationMeasures, wanted: Sequence[str]) -> list[str]:
    """Sentences on how families of about equal L0 differ: a sentence for each measure that differs, then the others."""
    different: list[str] = []
    others: dict[str, list[str]] = {}
    for name, found in verdicts_on(measures, wanted).items():
        clear = [f"{where}: {ends}" for where, _, ends, verdict in found if not verdict]
        if clear:
            different.append(f"{capitalized(words(name))}. {'; '.join(clear)}.")
        for verdict in dict.fromkeys(verdict for *_, verdict in found if verdict):
            where = [where.lower().replace("l0", "L0") for where, *_, of in found if of == verdict] if clear else []
            others.setdefault(verdict, []).append(words(name) + (f" ({', '.join(where)})" if where else ""))
    if ONE_FAMILY in others:
        return [ONE_FAMILY]
    return [*different, *(f"{verdict}: {'; '.join(names)}." for verdict, names in others.items())]


def in_short(measures: PopulationMeasures, wanted: Sequence[str]) -> str:
    """A sentence on how many measures differ between families of about equal L0, and on the highest family in each.

    "" if fewer than two differ, or if no two families have about equal L0.
    """
    found = [of for in_groups in verdicts_on(measures, wanted).values() for of in in_groups]
    highest = [most for _, most, _, verdict in found if not verdict]
    if len(highest) < 2 or any(NOT_FAIR in where for where, *_ in found):
        return ""
    counts = ", ".join(f"{family} ({count})" for family, count in Counter(highest).most_common())
    measured = sum(verdict not in (NOT_MEASURED, MEASURED_ONCE) for *_, verdict in found)
    return f"{len(highest)} of {measured} comparisons show a clear difference. Highest: {counts}."


def verdicts_on(measures: PopulationMeasures, wanted: Sequence[str]) -> dict[str, list[tuple[str, str, str, str]]]:
    """{measure: (where, *extremes) of each group of families of about equal L0}."""
    table, groups = table_of(measures, wanted), equally_sparse(measures)
    pairs = sum(comb(len(families), 2) for _, families in groups)
    return {
        name: [(where, *extremes(measures, name, families, table, pairs)) for where, families in groups]
        for name in wanted
    }


def extremes(
    measures: PopulationMeasures, measure: str, families: list[str], table: Table, pairs: int
) -> tuple[str, str, str]:
    """(the family with the highest value; it and the lowest one in words; why they do not clearly differ, or "").

    `pairs` is the number of pairs of families that are compared in all.
    """
    known = {family: table[family][measure].mean for family in families}
    means = {family: mean for family, mean in known.items() if mean is not None}
    if not means:
        return "", "", NOT_MEASURED
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    if means[most] == means[least]:
        alone = ONE_FAMILY if len(measures.families) == 1 else MEASURED_ONCE
        return most, f"{table[most][measure]}", "The same for all families" if len(means) > 1 else alone
    gap = difference(measures, measure, most, least, pairs)
    ends = f"highest for {most}, lowest for {least}, a difference of {gap}"
    if gap.low is None:
        return most, ends, "Not known without an interval, which needs three seeds"
    return most, ends, "" if gap.excludes_zero else "No clear difference between families of about equal L0"


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def words(measure: str) -> str:
    score, _, label = measure.partition(": ")
    return MEASURES.get(measure) or (f"{LABEL_WORDS[score]}: {label}" if label else measure)


def named(table: Table) -> Table:
    return {row: {words(measure): value for measure, value in columns.items()} for row, columns in table.items()}


def lines_of(table: Table) -> list[tuple[str, list[str]]]:
    """A line for each measure, with a cell for each family: the mean over seeds with its interval."""
    measures = dict.fromkeys(measure for row in table.values() for measure in row)
    return [(words(name), [str(row[name]) if name in row else "" for row in table.values()]) for name in measures]


def equally_sparse(measures: PopulationMeasures) -> list[tuple[str, list[str]]]:
    """(where, families) for each group of two or more families of about equal L0, as in "At L0 31.8 to 32.3".

    If there is no such group, all families are one, and the text says that they are not comparable.
    """
    l0s = {family: row["l0"].mean or 0.0 for family, row in table_of(measures, ["l0"]).items()}
    groups: list[list[str]] = []
    for family in sorted(l0s, key=l0s.__getitem__):
        if groups and l0s[family] < L0_APART * l0s[groups[-1][0]]:
            groups[-1].append(family)
        else:
            groups.append([family])
    if len(l0s) > 1 and all(len(group) == 1 for group in groups):
        each = "; ".join(f"{family}: {l0:.1f}" for family, l0 in l0s.items())
        return [(f"At unequal L0 ({each}), {NOT_FAIR}", list(l0s))]
    return [
        ("At L0 " + " to ".join(dict.fromkeys(f"{l0s[family]:.1f}" for family in (group[0], group[-1]))), group)
        for group in groups
        if len(group) > 1 or len(l0s) == 1
    ]


def seeds_of(measures: PopulationMeasures) -> str:
    counts = sorted({len(names) for names in measures.families.values()})
    n = " to ".join(map(str, counts))
    few = " With fewer than three seeds there is no interval." if counts[0] < FEWEST else ""
    wider = (
        " The interval of a difference between the highest and the lowest family is widened, so that it holds for all "
        "pairs of families."
        if len(measures.families) > 2
        else ""
    )
    seeds = "seed" if counts == [1] else "seeds"
    if counts[-1] < FEWEST:
        return f"{n} {seeds} per family (members that differ only in their seed). Intervals need {FEWEST} seeds."
    return (
        f"{n} {seeds} per family (members that differ only in their seed), 95% intervals over seeds by Student's t."
        f"{few}{wider} Intervals cover what the seed changes: the initial weights, and the rows that dead features are "
        "revived from. They do not cover the text: all seeds see the same rows in the same order and are measured on "
        "the same held-out documents. On other text the values may lie outside the intervals. They are symmetric, so "
        "those of shares and counts may reach below 0 or above 1."
    )


ABOVE, BELOW = (
    f"All families are {side} the model with shuffled weights, without overlap of intervals"
    for side in ("above", "below")
)
OVERLAP, UNKNOWN = "The intervals of the two models overlap", "No interval for at least one model"


def beside_control(trained: Table, shuffled: Table, measure: str) -> str:
    """Compare the intervals of all families on the trained model with those on the other: ABOVE, BELOW or OVERLAP.

    Every family is compared with every family, not only with itself. UNKNOWN if an interval is missing.
    """
    lows, highs = (
        [[getattr(row[measure], end) for row in table.values()] for table in (trained, shuffled)]
        for end in ("low", "high")
    )
    if any(end is None for ends in (*lows, *highs) for end in ends):
        return UNKNOWN
    if min(lows[0]) > max(highs[1]):
        return ABOVE
    return BELOW if max(highs[0]) < min(lows[1]) else OVERLAP
