"""The report as one HTML file, which opens from disk and loads nothing from a network. `contents.py` composes it.

The library Vega is included once. Every figure is included twice: as its JSON, and as a picture for print and for pages
without scripts. The pictures are also files in RUN/figures, for papers and slides. The page does not refer to these
files, because it is sent alone. Its Content-Security-Policy allows its two scripts, by their hashes, and no address.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.pages.highlights import RULE
from analysis.runs import families
from analysis.runs.undefined import why_undefined
from analysis.stats import FEWEST_DOCUMENTS
from analysis.study.tables import lines_of
from analysis.ui.report.contents import Part, Report
from analysis.ui.report.figures import Drawn
from analysis.ui.terminal.wording import failure_text, member_name, share_text

# Half of an SVG's bytes, and redundant, because the image has an alt text.
SPOKEN = re.compile(r' (aria-[a-z]+|role)="[^"]*"')
FIGURES_BYTES = 3_300_000  # for all figures together; beyond it, those with most data are pictures only
SHOWN_SETTINGS = ("activation", "layer", "hook", "hidden_dim", "sparsity", "seed")  # shown for every member
SECTIONS = {
    "training": "Training",
    "densities": "Densities",
    "comparison": "Features in common",
    "emergence": "Emergence",
    "clusters": "Clusters",
}
DARK = {  # replacements for the colours of plots/style.py on a dark page
    "#0072B2": "#56B4E9",
    "#56B4E9": "#A6DBFF",
    "#332288": "#A99BFF",
    "#882255": "#E58AB8",
    "#117733": "#5FCB86",
    "#009E73": "#2CC79A",
    "#D55E00": "#FF8A3D",
    "#666666": "#A8AEB6",
    "#555555": "#A8AEB6",
    "#e6e6e6": "#343941",
    "#dcdcdc": "#4A505A",
    "#000000": "#FFFFFF",
}


def page(report: Report, pictures: Mapping[Drawn, list[Path]]) -> str:
    """The HTML of a report; `pictures` are the files that `plots.style.save` wrote for each figure."""
    import vl_convert

    environment = Environment(
        loader=PackageLoader("analysis.ui.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["one_line"] = lambda text: text.replace("\n", "↵")
    vega = Markup(vl_convert.javascript_bundle().replace("</script", r"<\/script"))  # type: ignore[call-arg]
    script = Markup(environment.get_template("report.js").render(DARK=DARK))
    return environment.get_template("report.html").render(
        report=report,
        parts=[(number, part, part.run.path.resolve().name) for number, part in enumerate(report.parts)],
        sections=SECTIONS,
        rule=RULE,
        rows=rows,
        lines_of=lines_of,
        fewest_documents=FEWEST_DOCUMENTS,
        embedded=fitted(pictures),
        scripts=[vega, script],
        hashes=[sha256(vega), sha256(script)],
    )


def fitted(pictures: Mapping[Drawn, list[Path]]) -> dict[Drawn, dict[str, Any]]:
    """All figures. Those with most data are pictures only, until the total is within FIGURES_BYTES."""
    figures = {drawn: embedded(drawn, paths) for drawn, paths in pictures.items()}
    sizes = {drawn: len(json.dumps(figure["spec"])) for drawn, figure in figures.items()}
    total = sum(sizes.values()) + sum(len(figure["picture"]) for figure in figures.values())
    for drawn in sorted(sizes, key=lambda drawn: -sizes[drawn]):
        if total <= FIGURES_BYTES:
            break
        total, figures[drawn]["spec"] = total - sizes[drawn], None
    return figures


def sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def embedded(drawn: Drawn, paths: list[Path]) -> dict[str, Any]:
    """The description of a figure, its picture as a data: address, and its specification."""
    # Rounded to five digits, which are more than a figure shows.
    spec = json.loads(json.dumps(drawn.figure.to_dict()), parse_float=lambda number: float(f"{float(number):.5g}"))
    png, svg = (path.read_bytes() for path in paths)
    svg = SPOKEN.sub("", svg.decode()).encode()
    kind, smaller = ("svg+xml", svg) if len(svg) <= len(png) else ("png", png)
    picture = f"data:image/{kind};base64,{base64.b64encode(smaller).decode()}"
    return {"name": drawn.name, "alt": drawn.alt, "picture": picture, "spec": spec}


def rows(part: Part) -> list[dict[str, Any]]:
    """The rows of the members' table: name, failure, and cells as (column, text, value to sort by)."""
    members, table = part.run.results["members"], []
    settings = [families.settings_of(part.run, member) for member in members]
    further = families.differing(settings, but_for=SHOWN_SETTINGS)
    for member, setting in zip(members, settings, strict=True):
        metrics, intervals = member["metrics"] or {}, member.get("intervals") or {}
        asked = member[member["sparsity_control"]]
        cells = [
            ("kind", member["activation"], member["activation"]),
            ("site", f"{member['layer']} {member['hook']}", ""),
            ("features", f"{member['hidden_dim']:,}", member["hidden_dim"]),
            ("target", f"{asked:g}", asked),
            ("seed", str(member["seed"]), member["seed"]),
            *(
                (families.setting_name(name), "-" if setting[name] is None else f"{setting[name]}", setting[name])
                for name in further
            ),
        ]
        columns = {"explained_variance": "EV", "explained_variance_train": "EV, training rows"}
        for name, column in (columns | {"ce_recovered": "CE recovered", "l0": "L0"}).items():
            value = metrics.get(name)
            text = f"{value:.1f}" if name == "l0" and value is not None else share_text(value, intervals.get(name))
            cells.append((column, text, value))
        dead = metrics.get("dead_fraction")
        cells.append(("dead", "-" if dead is None else f"{dead:.1%}", dead))
        failed = failure_text(member) if member["failed"] else ""
        unknown = why_undefined(metrics)
        table.append({"name": member_name(member), "failed": failed, "unknown": unknown, "cells": cells})
    return table
