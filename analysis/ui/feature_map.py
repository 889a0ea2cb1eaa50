"""Concept embeddings: where the decoder directions of one dictionary lie, drawn without a language model.

Shapes: F features, N of them alive, D width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from analysis.comparison.clusters import pca_of, umap_of
from analysis.plots.style import styled
from analysis.quality.ground_truth import unit

FEWEST = 20  # living features that make a map


@dataclass(frozen=True)
class Embedding:
    """Of the living features: their numbers, places and densities."""

    feature_N: np.ndarray
    xy_Nx2: np.ndarray
    density_N: np.ndarray
    method: str


def compute(W_dec_FxD: np.ndarray, density_F: np.ndarray, seed: int = 0) -> Embedding:
    """UMAP by cosine where umap-learn is installed, else two principal components."""
    feature_N = np.flatnonzero(density_F > 0)
    x_NxD = unit(W_dec_FxD[feature_N])
    with_umap = find_spec("umap") is not None
    xy_Nx2 = umap_of(x_NxD, seed) if with_umap else pca_of(x_NxD, 2)[0]
    method = "UMAP by cosine" if with_umap else "two principal components"
    return Embedding(feature_N, xy_Nx2, density_F[feature_N], method)


def figure(name: str, embedding: Embedding) -> Any:
    """An Altair scatter, a point a living feature, coloured by how often it fires."""
    import altair as alt

    rows = [
        {"feature": int(f), "x": float(x), "y": float(y), "density": float(np.log10(density))}
        for f, (x, y), density in zip(embedding.feature_N, embedding.xy_Nx2, embedding.density_N, strict=True)
    ]
    axes = (axis.scale(zero=False, nice=False, padding=12).axis(None) for axis in (alt.X("x:Q"), alt.Y("y:Q")))
    colour = alt.Color("density:Q", title="log10 of the density").scale(scheme="viridis")
    points = alt.Chart(alt.Data(values=rows)).mark_circle(size=28 if len(rows) < 5000 else 12, opacity=0.85)
    chart = points.encode(*axes, color=colour, tooltip=["feature:N", alt.Tooltip("density:Q", format=".2f")])
    subtitle = [f"{name}: {len(rows):,} living features", embedding.method]
    return styled(chart.properties(width=480, height=360), "Directions of features", subtitle)
