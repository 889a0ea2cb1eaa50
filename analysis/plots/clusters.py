"""A map of the decoder directions, with the largest clusters coloured and named."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from analysis.comparison.clusters import WITHOUT_UMAP, Clusters
from analysis.plots.feature_map import map_points
from analysis.plots.style import KIND_STYLES, styled


def clusters_chart(clusters: Clusters, shown: int = 10) -> Any:
    """An Altair figure: at most 10 of the largest clusters are coloured, numbered and named, the others are grey."""
    colours = [colour for colour, _ in KIND_STYLES.values()][:shown]
    legend = [
        f"{i + 1}  {name} ({size})" for i, (name, size) in enumerate(zip(clusters.names, clusters.sizes, strict=True))
    ]
    legend = legend[: len(colours)]
    rest = [size for size in clusters.sizes[len(legend) :]]
    others = [f"{len(rest)} smaller clusters ({sum(rest)})"] if rest else []
    none = f"in no cluster ({round(clusters.noise * clusters.alive)})"
    domain = [*legend, *others, none]
    rows = [
        {
            "x": float(clusters.xy_Fx2[f, 0]),
            "y": float(clusters.xy_Fx2[f, 1]),
            "feature": int(f),
            "promotes": clusters.tokens_F[f],
            "cluster": none if label < 0 else (legend[label] if label < len(legend) else others[0]),
            "rank": -1 if label < 0 else 1 if label < len(legend) else 0,
        }
        for f, label in enumerate(clusters.label_F)
        if not np.isnan(clusters.xy_Fx2[f, 0])
    ]
    rows.sort(key=lambda row: row["rank"])  # coloured points are drawn last, on top
    middles = [
        {"x": float(x), "y": float(y), "number": str(label + 1)}
        for label in range(len(legend))
        for x, y in [np.median(clusters.xy_Fx2[clusters.label_F == label], axis=0)]
    ]
    colour = alt.Color("cluster:N", title=None).scale(
        domain=domain, range=[*colours[: len(legend)], *["#9a9a9a"] * len(others), "#dcdcdc"]
    )
    colour = colour.legend(orient="bottom", columns=2, labelLimit=300, symbolSize=90, symbolOpacity=1)
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("feature", "promotes", "cluster")]
    points = map_points(alt.Data(values=rows), 28 if len(rows) < 5000 else 12, 0.85)
    points = points.encode(color=colour, tooltip=tooltip)
    numbers = alt.Chart(alt.Data(values=middles)).encode(x="x:Q", y="y:Q", text="number:N")
    halo = numbers.mark_text(fontSize=14, fontWeight="bold", stroke="white", strokeWidth=4, strokeJoin="round")
    ink = numbers.mark_text(fontSize=14, fontWeight="bold", color="#111111")
    alive = f"{clusters.alive:,} living features" + (
        f", {clusters.dead:,} that never fire left out" if clusters.dead else ""
    )
    counted = "1 cluster" if len(clusters.names) == 1 else f"{len(clusters.names)} clusters"
    how = "UMAP by cosine" if clusters.method == "UMAP" else WITHOUT_UMAP
    subtitle = [f"{alive}; {counted}, named after the tokens that they promote", how]
    return styled(alt.layer(points, halo, ink).properties(width=640, height=460), "Directions of features", subtitle)
