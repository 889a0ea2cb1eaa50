"""A chart of loss and explained variance over the steps of training, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from analysis.plots.style import kind_colour, styled

MOST_POINTS = 80  # points of a curve that are drawn, at most
CURVES = {"loss": "loss (log scale)", "explained_variance": "explained variance"}


def thinned(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most MOST_POINTS evenly spaced lines, including the last one."""
    stride = -(-len(lines) // MOST_POINTS)
    return lines[::-1][::stride][::-1]


def training_curves_chart(curves: Mapping[str, list[dict[str, float]]], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: loss and explained variance during training, a line for each member in its kind's colour."""
    rows = [
        {"member": name, "kind": kinds[name], "step": line["step"]}
        | {what: line[what] for what in CURVES if line.get(what) is not None}
        for name, lines in curves.items()
        for line in thinned(lines)
    ]
    base = alt.Chart().mark_line(opacity=0.8, strokeWidth=1.6)
    panels = []
    for what, title in CURVES.items():
        scale = alt.Scale(type="log", nice=True) if what == "loss" else alt.Scale(zero=False)
        positive = base.transform_filter(f"datum.{what} > 0") if what == "loss" else base
        panels.append(
            positive.encode(
                x=alt.X("step:Q", title="training step").axis(format="~s", tickCount=6),
                y=alt.Y(f"{what}:Q", title=title).scale(scale),
                color=kind_colour(kinds[name] for name in curves),
                detail="member:N",
                tooltip=["member:N", "step:Q", alt.Tooltip(f"{what}:Q", format=".4g")],
            ).properties(width=360, height=240)
        )
    chart = alt.hconcat(*panels, spacing=32, data=alt.Data(values=rows))
    return styled(chart, "Training", "one line per member, measured on the training batches")
