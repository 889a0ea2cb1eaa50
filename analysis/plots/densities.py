"""How often features fire: the pictures in which dead and very frequent ones are seen.

Shapes: F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.features.density import EDGES, density_histogram
from analysis.plots.style import kind_colour, step_heatmap, styled, thinned

MOST_ROWS = 256  # of a heatmap


def densities_chart(density_F: Mapping[str, np.ndarray], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: how many features fire how often (log10), a line a dictionary; those that never do are said."""
    import altair as alt

    rows = [
        {"kind": kinds[name], "member": name, "density": float(edge + 0.125), "features": int(count)}
        for name, own_F in density_F.items()
        for edge, count in zip(EDGES, density_histogram(own_F)[0], strict=False)
    ]
    dead = sum(int((own_F == 0).sum()) for own_F in density_F.values())
    present = list(dict.fromkeys(kinds[name] for name in density_F))
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(interpolate="step")
        .encode(
            x=alt.X("density:Q", title="log10 of the share of rows on which a feature fires"),
            y=alt.Y("features:Q", title="features"),
            color=kind_colour(present),
            detail="member:N",
        )
        .properties(width=380, height=240)
    )
    return styled(chart, "Densities", f"a line a dictionary; {dead} features in all fire on no row")


def density_heatmap(name: str, density_F: Mapping[int, np.ndarray]) -> Any:
    """An Altair figure: each feature's density (log10) over the steps of training, the most frequent at the end above.

    Of more than MOST_ROWS features, as many at even distances in that order are shown; white is a feature that never
    fires.
    """
    import altair as alt

    steps = sorted(density_F)
    ordered = np.argsort(-density_F[steps[-1]], kind="stable")
    shown = thinned(ordered, MOST_ROWS)
    with np.errstate(divide="ignore"):
        log_density_SxF = np.log10([density_F[step] for step in steps])
    colour = alt.Color("density:Q", title="log10 of the density").scale(scheme="viridis")
    chart = step_heatmap(shown, log_density_SxF, steps, "most frequent", "density", colour)
    of = "" if len(shown) == len(ordered) else f", {len(shown)} of {len(ordered):,} features"
    return styled(chart, "How often each feature fires as it learns", f"{name}{of}")
