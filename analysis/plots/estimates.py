"""A chart of means over seeds with their intervals, with a panel for each measure."""

from __future__ import annotations

from typing import Any

import altair as alt

from analysis.plots.style import styled
from analysis.stats import Estimate


def estimates_chart(title: str, table: dict[str, dict[str, Estimate]], columns: int = 3) -> Any:
    """An Altair figure with a panel for each column of the table and a point with its interval for each row."""
    rows = [
        {"row": row, "column": column, "mean": value.mean, "low": value.low, "high": value.high}
        for row, estimates in table.items()
        for column, value in estimates.items()
        if value.mean is not None
    ]
    y = alt.Y("row:N", title=None, sort=list(table)).axis(labelLimit=220)
    base = alt.Chart().encode(y=y, color=alt.value("#0072B2"))
    x = alt.X("mean:Q", title=None).scale(zero=False, nice=True).axis(tickCount=4)
    layers = alt.layer(
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x),
        data=alt.Data(values=rows),
    )
    facets = layers.properties(width=190, height=22 * len(table)).facet(
        facet=alt.Facet("column:N", title=None, sort=list(next(iter(table.values())))), columns=columns
    )
    return styled(facets.resolve_scale(x="independent"), title, "mean over seeds and 95% interval")
