"""A population seen from its records alone: how its members learned, and where each of them ended."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.figures import KIND_STYLES, OTHER_STYLE, styled

CURVES = {"loss": "training loss", "explained_variance": "explained variance", "dead_fraction": "dead features"}
POINTS = 60  # of a member's curve, evenly spaced in the logarithm of the step
ALL = "datum.member == member || member == ''"


def curves(metrics: Iterable[Mapping[str, Any]], kinds: Mapping[str, str]) -> Any:
    """An Altair figure of the lines of metrics.jsonl: CURVES over the steps (log scale), a line a member.

    The parameter `member` names one whose lines stand out; it is empty at first.
    """
    import altair as alt

    rows = [
        {"member": name, "kind": kinds[name], "step": line["step"]} | {of: line.get(of) for of in CURVES}
        for name, lines in of_members(metrics, kinds).items()
        for line in thinned(lines)
    ]
    charts = []
    for of, title in CURVES.items():
        values = [row[of] for row in rows if row[of] is not None]
        scale = alt.Scale(type="log") if of == "loss" and min(values, default=0) > 0 else alt.Scale(zero=False)
        axis = alt.Axis(format="%" if of == "dead_fraction" else "~g", tickCount=5)
        charts.append(
            alt.Chart()
            .mark_line(strokeWidth=1.6)
            .encode(
                x=alt.X("step:Q", title="training step (log scale)").scale(type="log").axis(format="~s", tickCount=5),
                y=alt.Y(f"{of}:Q", title=title, scale=scale, axis=axis),
                color=colour(kinds),
                detail="member:N",
                opacity=alt.condition(ALL, alt.value(0.85), alt.value(0.12)),
                tooltip=["member:N", alt.Tooltip("step:Q", format=","), alt.Tooltip(f"{of}:Q", format=".4~g")],
            )
            .properties(width=250, height=200)
        )
    drawn = alt.hconcat(*charts, data=alt.Data(values=rows), spacing=24).add_params(alt.param("member", value=""))
    return styled(drawn, "Training", "on training rows, a line a dictionary")


def of_members(
    metrics: Iterable[Mapping[str, Any]], members: Iterable[str]
) -> defaultdict[str, list[Mapping[str, Any]]]:
    """The lines of each of these members."""
    known, found = set(members), defaultdict(list)
    for line in metrics:
        if line["member"] in known:
            found[line["member"]].append(line)
    return found


def thinned(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last, and at most POINTS in all."""
    wanted = np.geomspace(1, len(lines), POINTS).round().astype(int)
    return [lines[place - 1] for place in np.unique(wanted)]


def scatter(members: Sequence[Mapping[str, Any]]) -> Any:
    """An Altair figure of members of results.json: held-out explained variance against L0, a point a member."""
    import altair as alt

    rows = [
        {"member": of["id"], "kind": of["activation"], "seed": of["seed"]}
        | {"l0": of["metrics"]["l0"], "explained_variance": of["metrics"]["explained_variance"]}
        for of in members
        if of["metrics"]["l0"] > 0
    ]
    kinds = {row["member"]: row["kind"] for row in rows}
    present = list(dict.fromkeys(kinds.values()))
    shapes: list[Any] = [KIND_STYLES.get(kind, OTHER_STYLE)[1] for kind in present]
    l0s = [row["l0"] for row in rows] or [1.0]
    low, high = min(l0s) / 1.03, max(l0s) * 1.03
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X("l0:Q", title="L0: active features a row (log scale)")
            .scale(type="log", domain=[low, high], nice=False)
            .axis(values=ticks(low, high), format="~g"),
            y=alt.Y("explained_variance:Q", title="explained variance").scale(zero=False, padding=14),
            color=colour(kinds),
            shape=alt.Shape("kind:N", title=None).scale(domain=present, range=shapes),
            opacity=alt.condition(ALL, alt.value(0.9), alt.value(0.15)),
            tooltip=[
                "member:N",
                "seed:N",
                alt.Tooltip("l0:Q", format=".2f", title="L0"),
                alt.Tooltip("explained_variance:Q", format=".4f", title="explained variance"),
            ],
        )
        .properties(width=430, height=260)
        .add_params(alt.param("member", value=""))
    )
    return styled(chart, "Explained variance at the sparsity reached", "held-out rows, a point a dictionary")


def ticks(low: float, high: float) -> list[float]:
    """Some round numbers between the ends, five at most."""
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step *= next(of for of in (1, 2, 5, 10) if (high - low) / (step * of) <= 5)
    return [round(step * i, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1) if i]


def colour(kinds: Mapping[str, str]) -> Any:
    """Of the members' kinds, as in all figures."""
    import altair as alt

    present = list(dict.fromkeys(kinds.values()))
    colours: list[Any] = [KIND_STYLES.get(kind, OTHER_STYLE)[0] for kind in present]
    return alt.Color("kind:N", title=None).scale(domain=present, range=colours)
