"""The output of find-feature as tables that fit into the terminal. Computes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from analysis.ui.terminal.fitted import Fitted, Spare
from analysis.ui.terminal.wording import counted

if TYPE_CHECKING:
    from analysis.concepts.detectors import Detector, FindFeature, FoundFeature
    from analysis.concepts.search import FeatureDescription

HEADERS = ("dictionary", "feature", "AUROC", "95%", "w/o", "prec.", "cov.", "diff.", "dens.", "q")
SPARE = Spare(("diff.", "dens.", "cov.", "prec.", "95%"), "the file of all numbers")
ORDER = "by the AUROC on the passages that chose the features, which is not shown: it is too high for the best of many"
BY_PHRASE = "tells the scored passages apart mostly by the phrase's own tokens"
WITHOUT_PHRASE = "the AUROC when the tokens of the phrase itself are not counted; 0.5 is chance"
LEGEND = {
    "feature": 'its number; "means" is the difference in means at a hook as a detector',
    "order": ORDER,
    "AUROC": "how often a passage about the concept has a larger value than another, on passages that neither chose "
    "the feature nor set its threshold",
    "95%": "interval of the AUROC (none if too few passages of the concept are scored)",
    "w/o": WITHOUT_PHRASE,
    "prec.": "precision: share of the passages above the threshold with the concept",
    "cov.": "coverage: share of the concept's passages above the threshold",
    "diff.": "mean value on the concept's passages minus the mean on the others",
    "dens.": "density: share of the held-out tokens on which the feature fires",
    "q": "smallest false discovery rate at which the feature passes; * marks those that do",
}


def found_table(
    title: str,
    features: Iterable[FoundFeature],
    densities: Mapping[tuple[str, int], float | None],
    baselines: Mapping[str, Detector],
    explained: bool = False,
) -> Fitted:
    """A row for each feature, dim if it does not pass, and then a row for each baseline.

    If it is `explained`, the meaning of each column that is shown stands below.
    """
    rows: list[tuple[list[str], str]] = []
    for feature in features:
        density = densities.get((feature.member, feature.feature))
        last = [
            "-" if density is None else f"{density:.4f}",
            f"{feature.q_value:.2g}{' *' if feature.passes else '  '}",
        ]
        cells = [feature.member, str(feature.feature), *detector_cells(feature.detector), *last]
        rows.append((cells, "" if feature.passes else "dim"))
    for name, detector in baselines.items():
        rows.append(([name, "means", *detector_cells(detector), "", ""], ""))

    def draw(without: Collection[str]) -> Table:
        table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
        kept = [number for number, header in enumerate(HEADERS) if header not in without]
        for number in kept:
            table.add_column(HEADERS[number], justify="right" if number else "left", no_wrap=True)
        for cells, style in rows:
            table.add_row(*(Text(cells[number]) for number in kept), style=style)
        return table

    def explain(without: Collection[str]) -> Table:
        legend = Table.grid(padding=(0, 2, 0, 0))
        for name, meaning in LEGEND.items():
            if name not in without:
                legend.add_row(name, meaning)
        return legend

    return Fitted(draw, SPARE, explain if explained else None)


def detector_cells(detector: Detector) -> list[str]:
    interval = detector.auroc_interval
    shares = [detector.auroc_without_phrase, detector.precision, detector.coverage]
    return [
        f"{detector.auroc:.3f}",
        f"{interval[0]:.2f}-{interval[1]:.2f}" if interval else "-",
        *("-" if share is None else f"{share:.2f}" for share in shares),
        f"{detector.difference:.3g}",
    ]


def phrase_verdict(detector: Detector) -> str:
    """A sentence with this detector's figures that says that it needs the phrase's own tokens."""
    return f"{BY_PHRASE}: AUROC {detector.auroc:.2f}, without them {detector.auroc_without_phrase:.2f} (0.5 is chance)"


def description_text(found: FoundFeature, description: FeatureDescription, contexts: int) -> Text:
    """The tokens that a feature promotes, and the contexts of its largest activations with the token marked."""
    text = Text(f"feature {found.feature} of {found.member}", style="bold")
    if found.needs_phrase:
        text.append(f"\n  {phrase_verdict(found.detector)}", style="not bold yellow")
    if description.promoted:
        text.append("\n  promotes " + " ".join(map(repr, description.promoted)), style="not bold")
    text.append("\n  fires most in the whole corpus, with or without the phrase, at", style="not bold")
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
        f"{phrase}: {counted(p['concept'], 'passage')} about it ({p['of_which_examples']} of them your examples), "
        f"on average {p['mean_tokens_concept']:.0f} tokens long",
        f"compared with {p['others']} other passages, on average {p['mean_tokens_others']:.0f} tokens long; "
        f"{counted(p['documents_read'], 'document')} read",
        f"scored on {counted(p['scored_concept'], 'passage')} about it ({p['scored_concept_not_trained_on']} from "
        f"documents that the dictionaries were not trained on) and {p['scored_others']} others "
        f"({p['scored_others_not_trained_on']} from such documents)",
    ]
    if p["texts_left_out"]:
        lines.append(
            f"left out: {p['texts_left_out']} of your texts, because they nearly equal another text, or contain the "
            "phrase although they were given as texts without the concept"
        )
    if p["near_copies_left_out"]:
        lines.append(f"left out: {p['near_copies_left_out']} near-copies among the corpus's documents and passages")
    tried = f"{counted(sum(result.tried.values()), 'feature')} in {counted(len(result.tried), 'dictionary')} tried"
    rate = f"a false discovery rate of {fdr:g}"
    if passing:
        return [*lines, f"{tried}; of the {len(result.features)} features below, {passing} pass at {rate}"]
    few = (
        f"; {p['concept']} passages about the concept are too few, {ENOUGH} are needed: give examples (--examples)"
        if p["concept"] < ENOUGH
        else ""
    )
    return [*lines, f"nothing found: {tried}, none passes at {rate}{few}; the best that do not pass are shown"]
