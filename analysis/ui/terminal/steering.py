"""The texts and figures of a steering experiment as tables."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from analysis.interventions.steering import UNSTEERED, Steered, Texts


def steered_texts_table(steered: Steered) -> Table:
    """The first text of each prompt, unsteered beside steered by the feature, with a row for each strength."""
    way, curve = next(iter(steered.ways.items()))
    table = Table(UNSTEERED, way, box=box.SIMPLE_HEAD, show_lines=True, pad_edge=False)
    for column in table.columns:
        column.ratio, column.overflow = 1, "fold"
    for number, prompt in enumerate(steered.prompts):
        plain = Text.assemble((prompt, "dim"), steered.plain[UNSTEERED].texts[number][0])
        for texts in curve:
            label = "" if steered.mode == "ablate" else f"{steered.mode} {texts.strength:g}: "
            table.add_row(plain, Text.assemble((label, "bold"), (prompt, "dim"), texts.texts[number][0]))
            plain = Text()
    return table


def steered_figures_table(steered: Steered) -> Table:
    """A row for each direction and strength and for the unsteered texts. `steer --help` explains the columns."""
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("strength", "concept's\nprobability", "change", "perplexity", "distinct\ntokens"):
        table.add_column(head, justify="right")
    plain = steered.plain[UNSTEERED].probability

    def add(name: str, texts: Texts, strength: str) -> None:
        change = texts.probability - plain
        table.add_row(
            name,
            strength,
            f"{texts.probability:.5f}",
            f"{change:+.5f}",
            f"{texts.perplexity:.1f}",
            f"{texts.distinct:.0%}",
        )

    for name, texts in steered.plain.items():
        add(name, texts, "")
    for name, curve in steered.ways.items():
        for texts in curve:
            add(name, texts, "" if steered.mode == "ablate" else f"{texts.strength:g}")
    return table
