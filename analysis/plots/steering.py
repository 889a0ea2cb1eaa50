"""A chart of the effects of steering against its strength."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from analysis.features.contexts import printable
from analysis.interventions.steering import UNSTEERED, Steered
from analysis.plots.style import KIND_STYLES, styled, with_room

LABEL_SHARE = 0.08  # of the width of an axis that the label of a strength needs


def steering_chart(steered: Steered) -> Any:
    """An Altair figure: probability of the watched tokens and perplexity by strength, a curve for each direction."""
    plain = steered.plain[UNSTEERED]
    rows = [
        {"strength": t.strength, "direction": direction, "probability": t.probability, "perplexity": t.perplexity}
        for direction, curve in steered.directions.items()
        for t in curve
    ]
    strengths = sorted({t.strength for curve in steered.directions.values() for t in curve})
    places = np.sign(strengths) * np.log1p(np.abs(strengths))  # as symlog, whose own ticks lie where nothing was tried
    x = alt.X("strength:Q", title=["strength (× the feature's maximum;", "symmetric log scale)"])
    x = x.scale(type="symlog", nice=False).axis(
        values=with_room(strengths, places, LABEL_SHARE), format="~g", labelFlush=False
    )
    colours = alt.Scale(domain=list(steered.directions), range=[colour for colour, _ in KIND_STYLES.values()])
    charts = []
    for name, axis, unsteered in (
        ("probability", "probability of the watched tokens", plain.probability),
        ("perplexity", "perplexity under the unsteered model", plain.perplexity),
    ):
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=x,
            y=alt.Y(f"{name}:Q", scale=alt.Scale(type="log" if name == "perplexity" else "linear"), title=axis),
            color=alt.Color("direction:N", scale=colours, title=None),
            shape=alt.Shape("direction:N", scale=alt.Scale(domain=list(steered.directions)), title=None),
        )
        rule = (
            alt.Chart(alt.Data(values=[{name: unsteered}]))
            .mark_rule(strokeDash=[4, 3], color="#555555")
            .encode(y=f"{name}:Q")
        )
        charts.append(alt.layer(rule, base.mark_line(), base.mark_point(filled=True, size=60)).properties(width=300))
    subtitle = (
        f"prompts: {len(steered.prompts)}; dashed: unsteered; "
        f"probability of: {printable(', '.join(steered.watched[:8]))}"
    )
    return styled(
        alt.hconcat(*charts, spacing=36), f"Steering by {next(iter(steered.directions))} ({steered.mode})", subtitle
    )
