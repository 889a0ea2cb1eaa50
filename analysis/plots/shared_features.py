"""A heatmap of the share of features that members have in common."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from analysis.comparison.shared_features import Comparison
from analysis.plots.style import styled


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
            x=alt.X("in:N", title="found in this member").sort(labels).axis(labelAngle=-40, labelLimit=260),
            y=alt.Y("of:N", title="features of this member" if index == 0 else None).sort(labels).axis(labelLimit=260),
        )
        colour = alt.Color("share:Q", title=["share of", "features"]).scale(scheme="viridis", domain=[0, 1])
        colour = colour.legend(format=".0%", gradientLength=180)
        light = alt.condition("datum.share > 0.6", alt.value("#111111"), alt.value("#ffffff"))
        tooltip = [alt.Tooltip("of:N"), alt.Tooltip("in:N"), alt.Tooltip("share:Q", format=".1%")]
        cells = base.mark_rect(stroke="white", strokeWidth=1.5).encode(color=colour, tooltip=tooltip)
        words = base.mark_text(fontSize=min(13, side // 2.4)).encode(text="text:N", color=light)
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
