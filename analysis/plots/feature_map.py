"""Maps of the directions of one dictionary's features."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pyarrow as pa

from analysis.pages.feature_table import FeatureList
from analysis.plots.style import INK, styled, thinned

MOST_POINTS = 3000  # points of a map, at most: a browser draws these without delay


def map_points(data: Any, size: int, opacity: float) -> Any:
    """An Altair chart with a point at each `x` and `y`, without axes."""
    axes = (axis.scale(zero=False, nice=False, padding=12).axis(None) for axis in (alt.X("x:Q"), alt.Y("y:Q")))
    return alt.Chart(data).mark_circle(size=size, opacity=opacity).encode(*axes)


def feature_map(table: FeatureList, chosen_N: np.ndarray, xy_Fx2: np.ndarray, selection: str) -> Any:
    """An Altair figure: at most MOST_POINTS of the chosen features on the map. A click selects `feature`."""
    placed_N = chosen_N[np.isfinite(xy_Fx2[chosen_N]).all(1)]
    shown_N = thinned(placed_N, MOST_POINTS)
    rows = [
        {
            "x": float(xy_Fx2[feature, 0]),
            "y": float(xy_Fx2[feature, 1]),
            "feature": feature,
            "promotes": table.promotes_F[feature],
            "density": float(max(table.density_F[feature], 1e-6)),
            "label": table.label_F[feature],
        }
        for feature in shown_N.tolist()
    ]
    table_of_rows = pa.Table.from_pylist(rows)  # Altair validates a table faster than a list of rows
    colour = alt.Color("density:Q", title="density").scale(type="log", scheme="viridis")
    return (
        map_points(table_of_rows, 60 if len(rows) < 1000 else 25, 0.9)
        .encode(
            color=colour.legend(orient="bottom", gradientLength=160, format="~g"),
            tooltip=["feature:Q", "promotes:N", "label:N", alt.Tooltip("density:Q", format=".2g")],
        )
        .add_params(alt.selection_point(name=selection, fields=["feature"]))
        .properties(width="container", height=340, background="white")
        .configure_view(stroke=None)
        .configure_legend(labelColor=INK, titleColor=INK)  # else a dark theme would override the text colours
    )


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
