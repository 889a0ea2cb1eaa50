"""The figures of a feature's page, as Altair charts that fill the width of their container.

Shapes: P positions of a window that have a row, B bars, E edges of bars.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np

from analysis.comparison.emergence import RECOGNIZABLE
from analysis.features.statistics import Features
from analysis.pages.feature import Stage
from analysis.plots.style import BLUE, ORANGE, styled
from analysis.plots.training import step_axis

HEIGHT = 240  # height of a figure, including title, axes and legend


def histogram(bars: tuple[np.ndarray, np.ndarray], x: str, counted: str, title: str, subtitle: str) -> Any:
    """An Altair figure: the share of all values in each bar. `counted` names what the values are of."""
    count_B, edge_E = bars
    share_B = count_B / max(1, count_B.sum())
    rows = [
        {"from": float(low), "to": float(high), "share": float(share)}
        for share, low, high in zip(share_B, edge_E[:-1], edge_E[1:], strict=True)
    ]
    marks = alt.Chart(alt.Data(values=rows)).mark_bar(color=BLUE, stroke="#ffffff", strokeWidth=0.5)
    chart = marks.encode(
        x=alt.X("from:Q", title=x, bin="binned"),
        x2="to:Q",
        y=alt.Y("share:Q", title=f"share of {counted}", axis=alt.Axis(format=".2~%")),
        tooltip=[alt.Tooltip(name, format=".3g") for name in ("from:Q", "to:Q", "share:Q")],
    )
    return styled(chart.properties(width="container", height=HEIGHT), title, subtitle)


def positions(share_P: np.ndarray, first: int) -> Any:
    """An Altair figure: the share of the rows at each position of a window on which the feature fires."""
    rows = [{"position": number, "share": float(share)} for number, share in enumerate(share_P, first)]
    marks = alt.Chart(alt.Data(values=rows)).mark_bar(color=BLUE).properties(width="container", height=HEIGHT)
    chart = marks.encode(
        x=alt.X(
            "position:O",
            title="position in the window, counted from 0",
            axis=alt.Axis(labelAngle=0, labelOverlap=True),
        ),
        y=alt.Y("share:Q", title="share of rows", axis=alt.Axis(format=".2~%")),
        tooltip=["position:O", alt.Tooltip("share:Q", format=".4f")],
    )
    return styled(chart, "Where in a window it fires", "share of the rows at each position")


def emergence(stages: list[Stage]) -> Any:
    """An Altair figure: the cosine of decoder rows to the feature's final direction over the steps of training."""
    names = ["the nearest of all rows", "its own row"]
    rows = [
        {"step": stage.step, "cosine": cosine, "row": name}
        for stage in stages
        for name, cosine in zip(names, (stage.best, stage.own), strict=True)
    ]
    lowest = min(0.0, *(stage.own for stage in stages))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=step_axis([stage.step for stage in stages]),
        y=alt.Y("cosine:Q", title="cosine to its final direction").scale(domain=[lowest, 1]),
        color=alt.Color("row:N", title=None, sort=names)
        .scale(domain=names, range=[BLUE, ORANGE])
        .legend(orient="bottom", columns=1, symbolType="stroke", symbolSize=400, symbolStrokeWidth=2),
        # The dashes let the other line be seen where both are the same.
        strokeDash=alt.StrokeDash("row:N", title=None, sort=names).scale(domain=names, range=[[1, 0], [6, 6]]),
        tooltip=["row:N", "step:Q", alt.Tooltip("cosine:Q", format=".3f")],
    )
    rule = (
        alt.Chart(alt.Data(values=[{"cosine": RECOGNIZABLE}]))
        .mark_rule(strokeDash=[4, 3], color="#555555")
        .encode(y="cosine:Q")
    )
    chart = alt.layer(rule, base.mark_line(point=True)).properties(width="container", height=HEIGHT + 80)
    return styled(chart, "When it emerged", f"grey: recognizable from a cosine of {RECOGNIZABLE} on")


def figures(features: Features, feature: int, stages: list[Stage], first: int) -> Iterator[tuple[str, Any]]:
    """(name, figure) of all figures for which the feature has data. `first` is the first position with a row."""
    activations, logits = features.activations(feature), features.logits(feature)
    if features.alive_F[feature]:
        firings = f"all its firings: {activations[0].sum():,}"
        yield "histogram", histogram(activations, "activation", "firings", "How strongly it fires", firings)
        yield "positions", positions(features.position_FxP[feature], first)
    if features.promotes_tokens:
        tokens = f"its logit weight on each of {logits[0].sum():,} tokens"
        yield "logits", histogram(logits, "logit weight", "tokens", "What it does to the vocabulary", tokens)
    if len(stages) > 2:
        yield "emergence", emergence(stages)
