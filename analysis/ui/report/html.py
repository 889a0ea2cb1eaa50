"""The report as one HTML file, which opens from disk and loads nothing from a network. `contents.py` composes it.

Every figure is in the page as SVG, in the inks of `plots/theme.py`, so that it follows the light or dark mode of the
reader, and is printed in dark ink. The figures are also files in RUN/figures, for papers and slides. The page does not
refer to these files, because it is sent alone. Its Content-Security-Policy allows its script, by its hash, and no
address.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis.pages.highlights import RULE, RULE_OF_ROWS
from analysis.plots.theme import STYLE
from analysis.runs import families
from analysis.runs.remarks import remark_on_loss_recovered
from analysis.stats import FEWEST_DOCUMENTS
from analysis.study.tables import lines_of
from analysis.ui.report.contents import Part, Report
from analysis.ui.report.figures import Drawn
from analysis.ui.terminal.wording import failure_text, member_name, share_text

SHOWN_SETTINGS = ("activation", "layer", "hook", "hidden_dim", "sparsity", "seed")  # shown for every member
SECTIONS = {
    "training": "Training",
    "densities": "Densities",
    "comparison": "Comparison",
    "emergence": "Emergence",
    "clusters": "Clusters",
}


def page(report: Report, figures: Mapping[Drawn, str]) -> str:
    """The HTML of a report. `figures` are all its figures as HTML."""
    environment = Environment(
        loader=PackageLoader("analysis.ui.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["one_line"] = lambda text: text.replace("\n", "↵")
    environment.filters["unbroken"] = unbroken
    script = Markup(environment.get_template("report.js").render())
    return environment.get_template("report.html").render(
        report=report,
        parts=[(number, part, part.run.path.resolve().name) for number, part in enumerate(report.parts)],
        sections_of=sections_of,
        rule_of=lambda part: RULE if part.run.has_language_model else RULE_OF_ROWS,
        flags=r"--\S+",
        rows=rows,
        lines_of=lines_of,
        columns_note=columns_note,
        figures={drawn: Markup(html) for drawn, html in figures.items()},
        theme=Markup(STYLE),
        script=script,
        hash=sha256(script),
    )


def sections_of(part: Part) -> dict[str, str]:
    """The titles of the sections that have figures, or a reason why they have none."""
    return {name: title for name, title in SECTIONS.items() if part.figures.get(name) or name in part.missing}


def columns_note(part: Part) -> str:
    """An explanation of the columns that the members' table has."""
    shown = {column for column, _, _ in rows(part)[0]["cells"]}
    notes = ["EV: explained variance"] if shown & {"EV", "EV, train"} else []
    notes += ["train: on training rows"] if "EV, train" in shown else []
    if "CE recovered" in shown:
        notes.append("CE recovered: share of the cross-entropy added by zero ablation that the dictionary does not add")
        documents = (part.run.results.get("loss_recovered") or {}).get("documents", FEWEST_DOCUMENTS)
        has_interval = documents >= FEWEST_DOCUMENTS
        few = f"none here: it needs {FEWEST_DOCUMENTS} documents, and was measured on {documents}"
        notes.append("in parentheses its 95% interval" + ("" if has_interval else f" ({few})"))
    notes.append("target: k, L0 or coefficient")
    notes += ["dead: share of the features that fire on no held-out row"] if "dead" in shown else []
    return f"Measured on held-out rows. {'; '.join(notes)}."


def unbroken(text: str, words: str = r"\S+") -> Markup:
    """The text as HTML in which these words (a pattern) are not broken, as a browser does it at hyphens and slashes."""
    return Markup(re.sub(words, r'<span class="unbroken">\g<0></span>', str(escape(text))))


def sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def rows(part: Part) -> list[dict[str, Any]]:
    """The rows of the members' table: name, failure, and cells as (column, text, value to sort by)."""
    members, table = part.run.results["members"], []
    settings = [families.settings_of(part.run, member) for member in members]
    has_sites = len({(member["layer"], member["hook"]) for member in members}) > 1  # one site is named above the table
    further = families.differing(settings, but_for=SHOWN_SETTINGS)
    for member, setting in zip(members, settings, strict=True):
        metrics, intervals = member["metrics"] or {}, member.get("intervals") or {}
        asked = member[member["sparsity_control"]]
        cells = [
            ("kind", member["activation"], member["activation"]),
            *([("site", f"{member['layer']} {member['hook']}", "")] if has_sites else []),
            ("features", f"{member['hidden_dim']:,}", member["hidden_dim"]),
            ("target", f"{asked:g}", asked),
            ("seed", str(member["seed"]), member["seed"]),
            *(
                (families.setting_name(name), "-" if setting[name] is None else f"{setting[name]}", setting[name])
                for name in further
            ),
        ]
        columns = {"explained_variance": "EV", "explained_variance_train": "EV, train"}
        for name, column in (columns | {"ce_recovered": "CE recovered", "l0": "L0"}).items():
            value = metrics.get(name)
            text = f"{value:.1f}" if name == "l0" and value is not None else share_text(value, intervals.get(name))
            cells.append((column, text, value))
        dead = metrics.get("dead_fraction")
        cells.append(("dead", "-" if dead is None else f"{dead:.1%}", dead))
        failed = failure_text(member) if member["failed"] else ""
        remark = remark_on_loss_recovered(metrics)
        table.append({"name": member_name(member), "failed": failed, "remark": remark, "cells": cells})
    by_column = zip(*(row["cells"] for row in table), strict=True)
    is_measured = [any(value is not None for _, _, value in column) for column in by_column]
    for row in table:
        row["cells"] = [cell for cell, is_shown in zip(row["cells"], is_measured, strict=True) if is_shown]
    return table
