"""The members of a run side by side: their settings and figures as a table, and which are worth their sparsity."""

from __future__ import annotations

from typing import Any

from analysis.figures import KIND_STYLES, OTHER_STYLE, styled
from analysis.run import FinishedRun

METRICS = ("explained_variance", "l0", "dead_fraction", "ce_recovered", "mse", "cosine")
SETTINGS = ("activation", "hidden_dim", "layer", "hook", "lr", "seed")


def rows_of(run: FinishedRun) -> list[dict[str, Any]]:
    """A row a member: the metrics that were measured, then what it was trained with."""
    return [
        {
            "member": name,
            **{metric: member["metrics"].get(metric) for metric in METRICS if metric in member["metrics"]},
            **{setting: member[setting] for setting in SETTINGS},
        }
        for name, member in run.members.items()
    ]


def figure(run: FinishedRun, selection: str) -> Any:
    """An Altair figure: explained variance against L0, a point a member; a click selects `member`."""
    import altair as alt

    rows = rows_of(run)
    kinds = list(dict.fromkeys(row["activation"] for row in rows))
    styles = [KIND_STYLES.get(kind, OTHER_STYLE) for kind in kinds]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=110, opacity=0.85)
        .encode(
            x=alt.X("l0:Q", title="L0 (active features a row)").scale(zero=False, padding=20),
            y=alt.Y("explained_variance:Q", title="explained variance").scale(zero=False, padding=20),
            color=alt.Color("activation:N", title=None).scale(domain=kinds, range=[colour for colour, _ in styles]),
            shape=alt.Shape("activation:N", title=None).scale(domain=kinds, range=[shape for _, shape in styles]),
            tooltip=[
                "member:N",
                alt.Tooltip("l0:Q", format=".1f"),
                alt.Tooltip("explained_variance:Q", format=".3f"),
            ],
        )
        .add_params(alt.selection_point(name=selection, fields=["member"]))
        .properties(width="container", height=300)
    )
    drawn = styled(chart, "What sparsity costs", "held-out rows; higher, and to the left, is better")
    return drawn.configure_legend(orient="bottom", labelFontSize=12, columns=3)
