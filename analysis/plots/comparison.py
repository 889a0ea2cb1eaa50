"""Charts that compare members: means over seeds, features in common, and features that split in wider dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from types import MappingProxyType
from typing import Any

import altair as alt
import numpy as np

from analysis.comparison.shared_features import Comparison
from analysis.comparison.splitting import Splitting
from analysis.plots.style import BLUE, kind_colour, styled
from analysis.stats import Estimate

SUBTITLE = 96  # characters in a line of a subtitle, about as wide as three panels
GAP = alt.Scale(paddingInner=0.05)  # between the cells of a matrix
ROUNDING = 1e-9  # a smaller value is zero, and what differs from it is rounding
LINE, TITLE = 15, 34  # height in pixels and largest number of characters of a line of a panel's title


def estimates_chart(
    title: str,
    table: dict[str, dict[str, Estimate]],
    shared: bool = False,
    kinds: Mapping[str, str] = MappingProxyType({}),
) -> Any | None:
    """An Altair figure with a panel for each column of the table and a point with its interval for each row.

    A row has the colour of its kind in `kinds`. Panels have one axis if their values are `shared`, of the same unit.
    Zero is a line where it is in a panel. Columns that are zero in all rows, up to rounding, have no panel, and the
    subtitle names them. None if there is no panel.
    """
    columns = dict.fromkeys(column for estimates in table.values() for column in estimates)
    known = {
        column: {row: exact(of[column]) for row, of in table.items() if column in of and of[column].mean is not None}
        for column in columns
    }
    zero = [column for column, of in known.items() if of and not any(ends(value) != (0, 0) for value in of.values())]
    drawn = {"\n".join(wrap(column, TITLE)): of for column, of in known.items() if of and column not in zero}
    if not drawn:
        return None
    rows = []
    for column, of in drawn.items():
        lows, highs = zip(*map(ends, of.values()), strict=True)
        line = {"zero": 0} if shared or min(lows) <= 0 <= max(highs) else {}
        for row, value in of.items():
            low, high = ends(value)
            rows.append(
                {"row": row, "kind": kinds.get(row, ""), "column": column, "mean": value.mean, "low": low, "high": high}
                | line
            )
    y = alt.Y("row:N", title=None, sort=list(table)).axis(labelLimit=220)
    base = alt.Chart().encode(y=y, color=kind_colour(kinds.get(row, "") for row in table).legend(None))
    x = alt.X("mean:Q", title=None).scale(zero=False, nice=3).axis(tickCount=3, labelFlush=False, labelSeparation=6)
    at_zero = alt.Chart().mark_rule(color="#666666").encode(x=alt.X("zero:Q", title=None))
    layers = alt.layer(
        at_zero.transform_filter("isValid(datum.zero)"),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x),
        data=alt.Data(values=rows),
    )
    header = alt.Header(labelExpr="split(datum.label, '\\n')", labelLineHeight=LINE)
    lines = max(column.count("\n") + 1 for column in drawn)
    facets = layers.properties(width=190, height=22 * len(table)).facet(
        facet=alt.Facet("column:N", title=None, sort=list(drawn), header=header),
        columns=2 if len(drawn) == 4 else 3,
        bounds="flush",  # titles and labels, which have different sizes, do not move the panels of a row apart
        spacing={"row": LINE * lines + 44, "column": 60},
    )
    has_interval = any(value.low is not None for of in drawn.values() for value in of.values())
    subtitle = [f"mean over seeds{' and 95% interval' * has_interval}"]
    # A line that begins with a space continues the one before.
    subtitle += wrap(f"zero for all, and not drawn: {'; '.join(zero)}", SUBTITLE, subsequent_indent=" ") if zero else []
    scaled = facets.resolve_scale(x="shared" if shared else "independent").resolve_axis(x="independent")
    return styled(scaled, title, subtitle)


def exact(value: Estimate) -> Estimate:
    """The estimate with zeros in place of numbers that differ from zero by rounding only."""
    mean, low, high = (0.0 if n is not None and abs(n) < ROUNDING else n for n in (value.mean, value.low, value.high))
    return Estimate(mean, low, high, value.n)


def ends(value: Estimate) -> tuple[float | None, float | None]:
    """The ends of the interval of an estimate. Both are its mean if it has none."""
    return (value.mean, value.mean) if value.low is None else (value.low, value.high)


def shared_features_chart(comparison: Comparison) -> Any:
    """An Altair heatmap of the share of features in common, by direction and, if measured, by activation."""
    matrices = {"by direction (cosine)": comparison.shared_MxM}
    if comparison.shared_by_activation_MxM is not None:
        matrices["by activation (correlation)"] = comparison.shared_by_activation_MxM
    labels, m = comparison.labels, len(comparison.labels)
    side = min(52, max(26, 620 // m))
    panels = []
    for index, (title, matrix) in enumerate(matrices.items()):
        rows = [
            {"of": labels[i], "in": labels[j], "share": matrix[i, j], "text": f"{100 * matrix[i, j]:.0f}"}
            for i in range(m)
            for j in range(m)
            if i != j
        ]
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X("in:N", title="found in this member").sort(labels).axis(labelAngle=-40, labelLimit=260).scale(GAP),
            y=alt.Y("of:N", title="features of this member" if index == 0 else None)
            .sort(labels)
            .axis(labelLimit=260)
            .scale(GAP),
        )
        colour = alt.Color("share:Q", title=["share of", "features"]).scale(scheme="viridis", domain=[0, 1])
        colour = colour.legend(format=".0%", gradientLength=180)
        legible = alt.condition("datum.share > 0.6", alt.value("black"), alt.value("white"))  # on dark pages, too
        tooltip = [alt.Tooltip("of:N"), alt.Tooltip("in:N"), alt.Tooltip("share:Q", format=".1%")]
        cells = base.mark_rect().encode(color=colour, tooltip=tooltip)
        words = base.mark_text(fontSize=min(13, side // 2.4)).encode(text="text:N", color=legible)
        panels.append((cells + words).properties(width=side * m, height=side * m, title=title))
    chance = comparison.chance_MxM[~np.eye(m, dtype=bool)].mean()
    subtitle = [
        f"% of living features matched one-to-one at {comparison.threshold:g} or more; "
        f"random directions with the same covariance: {100 * chance:.1f}%"
    ]
    if comparison.dead:
        subtitle.append(f"left out, because none of their features fires: {', '.join(comparison.dead)}")
    drawn = (alt.hconcat if m <= 10 else alt.vconcat)(*panels, spacing=36)
    return styled(drawn, "Features in common", subtitle)


def splitting_chart(splitting: Splitting) -> Any:
    """An Altair figure: how many features are lost, kept, split or new at each step to a wider dictionary."""
    names = ("lost", "kept", "split into 2", "split into 3", "split into 4 or more", "new")
    steps = [f"F {step.narrow:,} → {step.wide:,}" for step in splitting.steps]
    rows = []
    for title, step in zip(steps, splitting.steps, strict=True):
        counts = [step.children.get(n, 0) for n in range(4)]
        counts += [sum(count for n, count in step.children.items() if n > 3), step.new]
        rows += [{"step": title, "fate": name, "count": n} for name, n in zip(names, counts, strict=True)]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("fate:N", title=None).sort(names),
        x=alt.X("count:Q", title="features").axis(tickCount=4, format=",d", grid=True),
    )
    layers = base.mark_bar(color=BLUE), base.mark_text(align="left", dx=4, fontSize=12).encode(text="count:Q")
    drawn = alt.layer(*layers).properties(width=190, height=130)
    drawn = drawn.facet(alt.Facet("step:N", title=None).sort(steps), columns=4)
    subtitle = f"a parent has a cosine of {splitting.threshold:g} or more to its child"
    return styled(drawn, "How features split as the dictionary gets wider", subtitle)
