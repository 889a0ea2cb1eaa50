"""All members in one picture: what each explains at which sparsity, and how much of it is dead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.figures import KIND_STYLES, OTHER_STYLE, styled


def scatter(members: Mapping[str, Mapping[str, Any]]) -> Any:
    """An Altair figure: explained variance against L0, a point a member of results.json, by name."""
    import altair as alt

    rows = [
        {
            "member": name,
            "kind": member["activation"],
            "l0": member["metrics"]["l0"],
            "explained variance": member["metrics"]["explained_variance"],
            "dead": member["metrics"]["dead_fraction"],
        }
        for name, member in members.items()
    ]
    present = list(dict.fromkeys(row["kind"] for row in rows))
    colours, shapes = zip(*(KIND_STYLES.get(kind, OTHER_STYLE) for kind in present), strict=True)
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=alt.X("l0:Q", title="L0: active features a row").scale(zero=False, padding=16).axis(tickCount=6),
            y=alt.Y("explained variance:Q", title="explained variance").scale(zero=False, padding=16),
            color=alt.Color("kind:N", title=None).scale(domain=present, range=list(colours)),
            shape=alt.Shape("kind:N", title=None).scale(domain=present, range=list(shapes)),
            tooltip=["member:N", alt.Tooltip("l0:Q", format=".2f"), alt.Tooltip("explained variance:Q", format=".4f")]
            + [alt.Tooltip("dead:Q", format=".1%")],
        )
        .properties(width=430, height=300)
    )
    return styled(chart, "Explained variance and sparsity", "a point a member, on held-out rows")


def dead(shares: Mapping[str, float], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: a bar a member, the share of its features that fire on no row."""
    import altair as alt

    rows = [{"member": name, "kind": kinds[name], "dead": share} for name, share in shares.items()]
    present = list(dict.fromkeys(kinds[name] for name in shares))
    colours: list[Any] = [KIND_STYLES.get(kind, OTHER_STYLE)[0] for kind in present]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("dead:Q", title="share of features that fire on no row").axis(format=".0%"),
            y=alt.Y("member:N", title=None, sort=list(shares)).axis(labelLimit=240),
            color=alt.Color("kind:N", title=None).scale(domain=present, range=colours),
            tooltip=["member:N", alt.Tooltip("dead:Q", format=".2%")],
        )
        .properties(width=380, height=alt.Step(18))
    )
    return styled(chart, "Dead features", "of all rows, held-out ones included")
