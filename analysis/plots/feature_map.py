"""Maps of the directions of one dictionary's features: by density, chosen ones, and clusters with their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pyarrow as pa

from analysis.comparison.clusters import WITHOUT_UMAP, Clusters
from analysis.plots.style import KIND_STYLES, styled, thinned

MOST_POINTS = 3000  # points of a map, at most: a browser draws these without delay


def map_points(data: Any, size: int, opacity: float) -> Any:
    """An Altair chart with a point at each `x` and `y`, without axes."""
    axes = (axis.scale(zero=False, nice=False, padding=12).axis(None) for axis in (alt.X("x:Q"), alt.Y("y:Q")))
    return alt.Chart(data).mark_circle(size=size, opacity=opacity).encode(*axes)


def feature_map(
    chosen_N: np.ndarray, xy_Fx2: np.ndarray, density_F: np.ndarray, texts: Mapping[str, Sequence[str]], selection: str
) -> Any:
    """An Altair figure: at most MOST_POINTS of the chosen features on the map. A click selects `feature`.

    `texts` maps names to a text for each feature, which are shown when the mouse is over it.
    """
    placed_N = chosen_N[np.isfinite(xy_Fx2[chosen_N]).all(1)]
    shown_N = thinned(placed_N, MOST_POINTS)
    rows = [
        {
            "x": float(xy_Fx2[feature, 0]),
            "y": float(xy_Fx2[feature, 1]),
            "feature": feature,
            "density": float(max(density_F[feature], 1e-6)),
            **{name: texts_F[feature] for name, texts_F in texts.items()},
        }
        for feature in shown_N.tolist()
    ]
    table_of_rows = pa.Table.from_pylist(rows)  # Altair validates a table faster than a list of rows
    colour = alt.Color("density:Q", title="density").scale(type="log", scheme="viridis")
    points = map_points(table_of_rows, 60 if len(rows) < 1000 else 25, 0.9).encode(
        color=colour.legend(orient="bottom", gradientLength=160, format="~g"),
        tooltip=["feature:Q", *(f"{name}:N" for name in texts), alt.Tooltip("density:Q", format=".2g")],
    )
    points = points.add_params(alt.selection_point(name=selection, fields=["feature"])).properties(height=340)
    return styled(points, "Directions of features", f"one point per feature: {len(rows):,} are shown")


def density_map(name: str, density_N: np.ndarray, xy_Nx2: np.ndarray, method: str) -> Any:
    """An Altair figure with a point for each living feature, coloured by its density."""
    rows = [
        {"x": float(x), "y": float(y), "density": float(np.log10(density))}
        for (x, y), density in zip(xy_Nx2, density_N, strict=True)
    ]
    colour = alt.Color("density:Q", title="log10 of the density").scale(scheme="viridis")
    points = map_points(alt.Data(values=rows), 28 if len(rows) < 5000 else 12, 0.85).encode(color=colour)
    subtitle = [f"{name}: {len(rows):,} living features", method]
    return styled(points.properties(width=480, height=360), "Directions of features", subtitle)


def clusters_chart(clusters: Clusters, shown: int = 10) -> Any:
    """An Altair figure: at most 10 of the largest clusters are coloured, numbered and named, the others are grey."""
    colours = [colour for colour, _ in KIND_STYLES.values()][:shown]
    legend = [
        f"{i + 1}  {name} ({size})" for i, (name, size) in enumerate(zip(clusters.names, clusters.sizes, strict=True))
    ]
    legend = legend[: len(colours)]
    rest = [size for size in clusters.sizes[len(legend) :]]
    others = [f"{len(rest)} smaller cluster{'s' * (len(rest) > 1)} ({sum(rest)})"] if rest else []
    outside = round(clusters.noise * clusters.alive)
    none = f"in no cluster ({outside})"
    domain = [*legend, *others, *[none] * bool(outside)]
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
    halo = numbers.mark_text(fontSize=14, fontWeight="bold", stroke="#ffffff", strokeWidth=4, strokeJoin="round")
    ink = numbers.mark_text(fontSize=14, fontWeight="bold", color="#111111")
    alive = f"{clusters.alive:,} living features" + (
        f", {clusters.dead:,} that never fire left out" if clusters.dead else ""
    )
    counted = "1 cluster" if len(clusters.names) == 1 else f"{len(clusters.names)} clusters"
    how = "UMAP by cosine" if clusters.method == "UMAP" else WITHOUT_UMAP
    subtitle = [f"{alive}; {counted}, named after the tokens that they promote", how]
    return styled(alt.layer(points, halo, ink).properties(width=640, height=460), "Directions of features", subtitle)
