"""Charts of metrics against L0: a curve for each kind with the spread over seeds, and a point for each member."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt

from analysis.comparison.frontier import METRICS, Frontier
from analysis.plots.style import INK, kind_marks, not_from_zero, styled
from analysis.runs.families import Spread
from analysis.runs.member_table import member_rows
from sae_jax.members import Member


def frontier_chart(frontier: Frontier) -> Any:
    """An Altair figure: each metric against L0 (log scale), a curve for each kind, bars of one standard deviation.

    Settings in which curves of one kind differ have a panel each.
    """
    metrics = [name for name in METRICS if any(name in point.metrics for point in frontier.drawn)]
    seeds = sorted({len(point.seeds) for point in frontier.drawn})
    counts = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    means = "one seed" if seeds == [1] else f"mean of {counts} seeds, bars: ± one standard deviation"
    text = frontier.settings.get("text", "several texts")
    dead = len(frontier.points) - len(frontier.drawn)
    not_drawn = [f"not drawn: {dead} at L0 0, where no feature fires"] if dead else []
    charts = [metric_chart(frontier, metric) for metric in metrics]
    chart = alt.vconcat(*charts, spacing=28) if len(frontier.panels) > 1 else alt.hconcat(*charts, spacing=36)
    return (
        styled(chart, frontier.title, [f"{means}; held-out rows; text: {text}", *not_drawn])
        .configure_legend(labelFontSize=13, labelColor=INK, symbolSize=110, symbolOpacity=1, offset=24, rowPadding=6)
        .configure_header(labelFontSize=13, labelColor=INK, labelFontWeight="bold", labelAnchor="start", title=None)
    )


def metric_chart(frontier: Frontier, metric: str) -> Any:
    """An Altair chart of one metric against L0."""
    points = [point for point in frontier.drawn if metric in point.metrics]
    rows: list[dict[str, Any]] = [
        {"panel": p.panel, "kind": p.kind, "l0": p.metrics["l0"].mean, "mean": p.metrics[metric].mean}
        | bar(p.metrics[metric])
        for p in points
    ]
    colour, shape = kind_marks(point.kind for point in frontier.drawn)
    l0s = [row["l0"] for row in rows]
    low, high = min(l0s) / 1.15, max(l0s) * 1.15
    doubled = [2**i for i in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    between = [1.5 * 2**i for i in range(math.ceil(math.log2(low / 1.5)), math.floor(math.log2(high / 1.5)) + 1)]
    ticks = doubled if len(doubled) > 2 else sorted(doubled + between)
    x = alt.X("l0:Q", title="L0: active features per row (log scale)")
    x = x.scale(type="log", domain=[low, high], nice=False).axis(values=ticks, format="~g", grid=True)
    scale = not_from_zero((row[end] for row in rows for end in ("low", "high")), padding=14, nice=6)
    y = alt.Y("mean:Q", title=METRICS[metric], scale=scale).axis(tickCount=6)
    base = alt.Chart().encode(x=x, color=colour)
    layers = [
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_errorbar(ticks={"size": 13}, thickness=1.4, opacity=1).encode(
            alt.Y("low:Q", title=METRICS[metric]), y2="high:Q"
        ),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=shape),
    ]
    wide, tall = (300, 220) if len(frontier.panels) > 1 else (430, 330)
    layered = alt.layer(*layers, data=alt.Data(values=rows)).properties(width=wide, height=tall)
    return layered.facet(alt.Facet("panel:N", title=None).sort(frontier.panels), columns=3) if wide == 300 else layered


def bar(spread: Spread) -> dict[str, float]:
    """The ends of an error bar. For a single seed both are the mean."""
    deviation = spread.deviation or 0.0
    return {"low": spread.mean - deviation, "high": spread.mean + deviation}


def members_chart(members: Mapping[str, Mapping[str, Any]], selection: str | None = None) -> Any:
    """An Altair figure: explained variance against L0, a point for each member.

    If `selection` is given, a click on a point selects its `member` under that name.
    """
    rows = [row | {"kind": Member.from_results(members[row["member"]]).kind} for row in member_rows(members)]
    colour, shape = kind_marks(row["kind"] for row in rows)
    base = alt.Chart(alt.Data(values=rows)).properties(width=430, height=300)
    l0s, variances = (
        not_from_zero((row[name] for row in rows), padding=16, nice=6) for name in ("l0", "explained_variance")
    )
    chart = base.mark_point(filled=True, size=70, opacity=0.85).encode(
        x=alt.X("l0:Q", title="L0: active features per row", scale=l0s).axis(tickCount=6),
        y=alt.Y("explained_variance:Q", title="explained variance", scale=variances).axis(tickCount=6),
        color=colour,
        shape=shape,
        tooltip=["member:N", alt.Tooltip("l0:Q", format=".2f"), alt.Tooltip("explained_variance:Q", format=".4f")]
        + [alt.Tooltip("dead_fraction:Q", format=".1%")],
    )
    if selection:
        chart = chart.add_params(alt.selection_point(name=selection, fields=["member"]))
    return styled(chart, "Explained variance and sparsity", "one point per member, on held-out rows")
