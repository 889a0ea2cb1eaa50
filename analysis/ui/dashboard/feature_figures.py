"""The figures of a feature's page, as Altair charts that fill the width of their container.

Shapes: P positions of a window that have a row, B bars, E edges of bars.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from analysis.comparison.emergence import RECOGNIZABLE
from analysis.features.contexts import printable
from analysis.pages.feature import Bars, FeaturePage
from analysis.plots.style import styled

BLUE, ORANGE = "#0072B2", "#D55E00"
HEIGHT = 240  # height of a figure, including title, axes and legend


def histogram(bars: Bars, x: str, counted: str, title: str, subtitle: str) -> Any:
    """An Altair figure: the share of all values in each bar. `counted` names what the values are of."""
    import altair as alt

    share_B = bars.count_B / max(1, bars.count_B.sum())
    rows = [
        {"from": float(low), "to": float(high), "share": float(share)}
        for share, low, high in zip(share_B, bars.edge_E[:-1], bars.edge_E[1:], strict=True)
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=BLUE, stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X("from:Q", title=x, bin="binned"),
            x2="to:Q",
            y=alt.Y("share:Q", title=f"share of {counted}", axis=alt.Axis(format=".2~%")),
            tooltip=[alt.Tooltip(name, format=".3g") for name in ("from:Q", "to:Q", "share:Q")],
        )
        .properties(width="container", height=HEIGHT)
    )
    return styled(chart, title, subtitle)


def positions(page: FeaturePage) -> Any:
    """An Altair figure: the share of the rows at each position of a window on which the feature fires."""
    import altair as alt

    rows = [{"position": number, "share": float(share)} for number, share in enumerate(page.position_P, 1)]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=BLUE)
        .encode(
            x=alt.X(
                "position:O",
                title="position in the window (1 is the first with a row)",
                axis=alt.Axis(labelAngle=0, labelOverlap=True),
            ),
            y=alt.Y("share:Q", title="share of rows", axis=alt.Axis(format=".2~%")),
            tooltip=["position:O", alt.Tooltip("share:Q", format=".4f")],
        )
        .properties(width="container", height=HEIGHT)
    )
    return styled(chart, "Where in a window it fires", "share of the rows at each position")


def emergence(page: FeaturePage) -> Any:
    """An Altair figure: the cosine of decoder rows to the feature's final direction over the steps of training."""
    import altair as alt

    start = page.stages[1].step / 2 if len(page.stages) > 1 else 1
    rows = [
        {"step": max(stage.step, start), "cosine": cosine, "row": name}
        for stage in page.stages
        for name, cosine in (("the nearest of all rows", stage.best), ("its own row", stage.own))
    ]
    names = ["the nearest of all rows", "its own row"]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("step:Q", title="training step (log)").scale(type="log"),
        y=alt.Y("cosine:Q", title="cosine to its final direction").scale(
            domain=[min(0, *(r["cosine"] for r in rows)), 1]
        ),  # type: ignore[type-var]
        color=alt.Color("row:N", title=None, sort=names)
        .scale(domain=names, range=[BLUE, ORANGE])
        .legend(orient="bottom", columns=1),
        tooltip=["row:N", "step:Q", alt.Tooltip("cosine:Q", format=".3f")],
    )
    rule = alt.Chart(alt.Data(values=[{"cosine": RECOGNIZABLE}])).mark_rule(strokeDash=[4, 3]).encode(y="cosine:Q")
    chart = alt.layer(rule, base.mark_line(point=True)).properties(width="container", height=HEIGHT + 80)
    return styled(chart, "When it emerged", f"dashed: recognizable from a cosine of {RECOGNIZABLE} on")


def weights(entries: Sequence[tuple[str, float]], title: str, colour: str) -> Any:
    """An Altair figure: a bar for each token with its logit weight."""
    import altair as alt

    rows = [{"rank": i, "token": repr(printable(token))[1:-1], "weight": w} for i, (token, w) in enumerate(entries)]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=colour)
        .encode(
            x=alt.X("weight:Q", title="logit weight"),
            y=alt.Y("rank:O", title=None, axis=alt.Axis(labelExpr="", ticks=False, domain=False)),
            tooltip=["token:N", alt.Tooltip("weight:Q", format=".3f")],
        )
    )
    return styled(chart.properties(width="container", height=220), title, "")


def figures(page: FeaturePage) -> Iterator[tuple[str, Any]]:
    """(name, figure) of all figures for which the feature has data."""
    if page.fires:
        firings = f"all {page.activations.count_B.sum():,} firings"
        yield "histogram", histogram(page.activations, "activation", "firings", "How strongly it fires", firings)
        yield "positions", positions(page)
    tokens = f"its logit weight on each of {page.logits.count_B.sum():,} tokens"
    yield "logits", histogram(page.logits, "logit weight", "tokens", "What it does to the vocabulary", tokens)
    if len(page.stages) > 2:
        yield "emergence", emergence(page)
