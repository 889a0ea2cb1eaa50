"""Charts of how often features fire, which show dead and very frequent features.

Shapes: F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from analysis.features.density import EDGES, density_histogram
from analysis.plots.heatmap import step_heatmap
from analysis.plots.style import kind_colour, styled, thinned

MOST_ROWS = 256  # features in a heatmap, at most


def densities_chart(density_F: Mapping[str, np.ndarray], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: a histogram of the log10 density of features, with a line for each dictionary.

    It begins one bar before the rarest features. The subtitle gives the number of features that never fire.
    """
    histograms = {name: density_histogram(member_F)[0] for name, member_F in density_F.items()}
    first = max(0, int(np.argmax(np.any([*histograms.values()], axis=0))) - 1)
    rows = [
        {"kind": kinds[name], "member": name, "density": float(edge + 0.125), "features": int(count)}
        for name, histogram in histograms.items()
        for edge, count in zip(EDGES[first:], histogram[first:], strict=False)
    ]
    dead = sum(int((member_F == 0).sum()) for member_F in density_F.values())
    marks = alt.Chart(alt.Data(values=rows)).mark_line(interpolate="step").properties(width=380, height=240)
    chart = marks.encode(
        x=alt.X("density:Q", title="log10 of the share of rows on which a feature fires").scale(zero=False),
        y=alt.Y("features:Q", title="features"),
        color=kind_colour(kinds[name] for name in density_F),
        detail="member:N",
    )
    never = "1 feature in total fires" if dead == 1 else f"{dead:,} features in total fire"
    silent = f"{never} on no row" if dead else "every feature fires on some row"
    return styled(chart, "How often features fire", f"one line per dictionary; {silent}")


def density_heatmap(name: str, density_F: Mapping[int, np.ndarray]) -> Any:
    """An Altair figure: each feature's density (log10) over the steps of training, empty while it never fires.

    Features are ordered by their final density, the most frequent on top. At most MOST_ROWS are shown, evenly spaced in
    that order.
    """
    steps = sorted(density_F)
    ordered = np.argsort(-density_F[steps[-1]], kind="stable")
    shown = thinned(ordered, MOST_ROWS)
    with np.errstate(divide="ignore"):
        log_density_SxF = np.log10([density_F[step] for step in steps])
    finite = log_density_SxF[np.isfinite(log_density_SxF)]
    ends = (float(finite.min()), float(finite.max())) if finite.size else (-6.0, 0.0)
    chart = step_heatmap(log_density_SxF[:, shown].T, steps, "most frequent", "log10 of the density", ends)
    part = "" if len(shown) == len(ordered) else f", {len(shown)} of {len(ordered):,} features"
    return styled(chart, "How often each feature fires during training", f"{name}{part}")
