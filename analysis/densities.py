"""How often features fire: the pictures in which dead and very frequent ones are seen.

Shapes: F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.figures import KIND_STYLES, OTHER_STYLE, styled

EDGES = np.arange(-6, 0.01, 0.25)  # of log10 of the density
FREQUENT = 0.1  # density
MOST_ROWS = 256  # of a heatmap


def statistics(density_F: np.ndarray) -> dict[str, float]:
    """mean_activation_rate, the mean density, and high_freq_neurons, how many features are FREQUENT."""
    return {
        "mean_activation_rate": float(density_F.mean()),
        "high_freq_neurons": float((density_F > FREQUENT).sum()),
    }


def histogram(density_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(counts, EDGES): how many of the features that fire have which log10 of the density."""
    return np.histogram(np.log10(density_F[density_F > 0]), EDGES)


def figure(density_F: Mapping[str, np.ndarray], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: how many features fire how often (log10), a line a dictionary; those that never do are said."""
    import altair as alt

    rows = [
        {"kind": kinds[name], "member": name, "density": float(edge + 0.125), "features": int(count)}
        for name, own_F in density_F.items()
        for edge, count in zip(EDGES, histogram(own_F)[0], strict=False)
    ]
    dead = sum(int((own_F == 0).sum()) for own_F in density_F.values())
    present = list(dict.fromkeys(kinds[name] for name in density_F))
    colours: list[Any] = [KIND_STYLES.get(kind, OTHER_STYLE)[0] for kind in present]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(interpolate="step")
        .encode(
            x=alt.X("density:Q", title="log10 of the share of rows on which a feature fires"),
            y=alt.Y("features:Q", title="features"),
            color=alt.Color("kind:N", title=None).scale(domain=present, range=colours),
            detail="member:N",
        )
        .properties(width=380, height=240)
    )
    return styled(chart, "Densities", f"a line a dictionary; {dead} features in all fire on no row")


def heatmap(name: str, density_F: Mapping[int, np.ndarray]) -> Any:
    """An Altair figure: each feature's density (log10) over the steps of training, the most frequent at the end above.

    Of more than MOST_ROWS features, as many at even distances in that order are shown; white is a feature that never
    fires.
    """
    import altair as alt

    steps = sorted(density_F)
    ordered = np.argsort(-density_F[steps[-1]], kind="stable")
    shown = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_ROWS)).astype(int)]
    rows = [
        {
            "rank": rank,
            "feature": int(feature),
            "step": str(step),
            "density": float(np.log10(density_F[step][feature])),
        }
        for rank, feature in enumerate(shown)
        for step in steps
        if density_F[step][feature] > 0
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("step:O", title="training step", sort=[str(step) for step in steps]),
            y=alt.Y("rank:O", title="features, the most frequent above", axis=alt.Axis(labels=False, ticks=False)),
            color=alt.Color("density:Q", title="log10 of the density").scale(scheme="viridis"),
            tooltip=["feature:Q", "step:O", alt.Tooltip("density:Q", format=".2f")],
        )
        .properties(width=380, height=300)
    )
    of = "" if len(shown) == len(ordered) else f", {len(shown)} of {len(ordered):,} features"
    return styled(chart, "How often each feature fires as it learns", f"{name}{of}")
