"""Charts with all members of a run: explained variance against L0, and shares of dead features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.plots.style import KIND_STYLES, OTHER_STYLE, kind_colour, styled
from analysis.runs.member_table import member_rows


def scatter(members: Mapping[str, Mapping[str, Any]], selection: str | None = None) -> Any:
    """An Altair figure: explained variance against L0, a point for each member.

    If `selection` is given, a click on a point selects its `member` under that name.
    """
    import altair as alt

    rows = member_rows(members)
    present = list(dict.fromkeys(row["activation"] for row in rows))
    colours, shapes = zip(*(KIND_STYLES.get(kind, OTHER_STYLE) for kind in present), strict=True)
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=alt.X("l0:Q", title="L0: active features per row").scale(zero=False, padding=16).axis(tickCount=6),
            y=alt.Y("explained_variance:Q", title="explained variance").scale(zero=False, padding=16),
            color=alt.Color("activation:N", title=None).scale(domain=present, range=list(colours)),
            shape=alt.Shape("activation:N", title=None).scale(domain=present, range=list(shapes)),
            tooltip=["member:N", alt.Tooltip("l0:Q", format=".2f"), alt.Tooltip("explained_variance:Q", format=".4f")]
            + [alt.Tooltip("dead_fraction:Q", format=".1%")],
        )
        .properties(width=430, height=300)
    )
    if selection:
        chart = chart.add_params(alt.selection_point(name=selection, fields=["member"]))
    return styled(chart, "Explained variance and sparsity", "one point per member, on held-out rows")


def dead(shares: Mapping[str, float], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: a bar for each member with the share of its features that fire on no row."""
    import altair as alt

    rows = [{"member": name, "kind": kinds[name], "dead": share} for name, share in shares.items()]
    present = list(dict.fromkeys(kinds[name] for name in shares))
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("dead:Q", title="share of features that fire on no row").axis(format=".0%"),
            y=alt.Y("member:N", title=None, sort=list(shares)).axis(labelLimit=240),
            color=kind_colour(present),
            tooltip=["member:N", alt.Tooltip("dead:Q", format=".2%")],
        )
        .properties(width=380, height=alt.Step(18))
    )
    return styled(chart, "Dead features", "on all rows, including held-out ones")
