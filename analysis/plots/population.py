"""A chart with all members of a run: explained variance against L0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from analysis.plots.style import kind_marks, styled
from analysis.runs.member_table import member_rows


def scatter(members: Mapping[str, Mapping[str, Any]], selection: str | None = None) -> Any:
    """An Altair figure: explained variance against L0, a point for each member.

    If `selection` is given, a click on a point selects its `member` under that name.
    """
    rows = member_rows(members)
    colour, shape = kind_marks((row["activation"] for row in rows), "activation")
    base = alt.Chart(alt.Data(values=rows)).properties(width=430, height=300)
    chart = base.mark_point(filled=True, size=70, opacity=0.85).encode(
        x=alt.X("l0:Q", title="L0: active features per row").scale(zero=False, padding=16).axis(tickCount=6),
        y=alt.Y("explained_variance:Q", title="explained variance").scale(zero=False, padding=16),
        color=colour,
        shape=shape,
        tooltip=["member:N", alt.Tooltip("l0:Q", format=".2f"), alt.Tooltip("explained_variance:Q", format=".4f")]
        + [alt.Tooltip("dead_fraction:Q", format=".1%")],
    )
    if selection:
        chart = chart.add_params(alt.selection_point(name=selection, fields=["member"]))
    return styled(chart, "Explained variance and sparsity", "one point per member, on held-out rows")
