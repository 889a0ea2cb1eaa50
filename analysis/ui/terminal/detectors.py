"""What find-feature found, as tables of 80 columns: it is given plain data and computes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from analysis.stats import FEWEST_SCORED

if TYPE_CHECKING:
    from analysis.concepts.detectors import Detector, FindFeature, FoundFeature
    from analysis.concepts.search import FeatureDescription

HEADERS = ("AUROC", "95%", "w/o", "prec.", "cov.", "diff.", "dens.", "q")
LEGEND = (
    "AUROC: on passages that neither chose the feature nor set its threshold, and, of "
    f"{FEWEST_SCORED} passages of the concept or more, its interval; w/o: without the phrase's own tokens; "
    "prec., cov.: precision and coverage above the threshold; diff.: of the means; dens.: share of all tokens on "
    "which it fires; q: the smallest false discovery rate at which it passes"
)


def found_table(
    title: str,
    features: Iterable[FoundFeature],
    densities: Mapping[tuple[str, int], float | None],
    baselines: Mapping[str, Detector],
) -> Table:
    """A line a feature, dim where it does not pass; then a line a baseline."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("dictionary", overflow="fold")
    table.add_column("feature", justify="right", no_wrap=True)
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for found in features:
        density = densities.get((found.member, found.feature))
        last = ["-" if density is None else f"{density:.4f}", f"{found.q_value:.2g}"]
        cells = [f"#{found.feature}", *detector_cells(found.detector), *last]
        table.add_row(Text(found.member), *cells, style="" if found.passes else "dim")
    for name, detector in baselines.items():
        table.add_row(Text(f"mean difference, {name}"), "", *detector_cells(detector), "", "")
    return table


def detector_cells(detector: Detector) -> list[str]:
    interval = detector.auroc_interval
    shares = [detector.auroc_without_phrase, detector.precision, detector.coverage]
    return [
        f"{detector.auroc:.3f}",
        f"{interval[0]:.2f}-{interval[1]:.2f}" if interval else "-",
        *("-" if share is None else f"{share:.2f}" for share in shares),
        f"{detector.difference:.3g}",
    ]


def description_text(found: FoundFeature, description: FeatureDescription, contexts: int) -> Text:
    """What it promotes, and its largest places, the token marked."""
    text = Text(f"#{found.feature} of {found.member}", style="bold")
    text.append("\n  promotes " + " ".join(map(repr, description.promoted)), style="not bold")
    for context in description.contexts[:contexts]:
        text.append("\n  " + one_line(context.before), style="not bold")
        text.append(f"[{one_line(context.token)}]", style="not bold reverse")
        text.append(one_line(context.after), style="not bold")
    return text


def one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def search_summary(phrase: str, passages: dict[str, Any], result: FindFeature, fdr: float) -> list[str]:
    from analysis.concepts.detectors import ENOUGH

    p, passing = passages, sum(found.passes for found in result.features)
    lines = [
        f"{phrase}: {p['concept']} passages of {p['mean_tokens_concept']:.0f} tokens, {p['of_which_examples']} of them "
        f"examples, and {p['others']} others of {p['mean_tokens_others']:.0f}; {p['documents_read']:,} documents read",
        f"scored on {p['scored_concept']} passages and {p['scored_others']} others, of which "
        f"{p['scored_concept_not_trained_on']} and {p['scored_others_not_trained_on']} were not trained on",
    ]
    if p["texts_left_out"]:
        lines.append(
            f"left out: {p['texts_left_out']} of your texts, which nearly equal another or, given against it, hold the "
            "phrase"
        )
    if p["near_copies_left_out"]:
        lines.append(
            f"left out: {p['near_copies_left_out']} near-copies among the documents and passages of the corpus"
        )
    tried = f"of {sum(result.tried.values()):,} features tried in {len(result.tried)} dictionaries"
    if passing:
        return [
            *lines,
            f"{tried}, {passing} of the {len(result.features)} best pass, at a false discovery rate of {fdr:g}",
        ]
    few = (
        f" {p['concept']} passages are too few, {ENOUGH} are needed: give examples (--examples)"
        if p["concept"] < ENOUGH
        else ""
    )
    return [*lines, f"nothing found: {tried}, none passes at a false discovery rate of {fdr:g}.{few}"]
