"""When the features of finished dictionaries appeared in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.comparison.emergence import RECOGNIZABLE, Trajectory
from analysis.plots.style import kind_colour, step_heatmap, styled, thinned


def emergence_curves(trajectories: Mapping[str, Trajectory], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: the share of final features that are recognizable, over the steps, a line a dictionary."""
    import altair as alt

    rows = [
        {"member": name, "kind": kinds[name], "step": max(step, of.steps[1] / 2), "share": float(share)}
        for name, of in trajectories.items()
        for step, share in zip(of.steps, of.recognizable_S, strict=True)
    ]
    present = list(dict.fromkeys(kinds[name] for name in trajectories))
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True, opacity=0.8)
        .encode(
            x=alt.X("step:Q", title="training step (log scale; the start is drawn at the left)").scale(type="log"),
            y=alt.Y("share:Q", title=f"features recognizable (cosine ≥ {RECOGNIZABLE})").scale(domain=[0, 1]),
            color=kind_colour(present).sort(present),
            detail="member:N",
            tooltip=["member:N", "step:Q", alt.Tooltip("share:Q", format=".3f")],
        )
        .properties(width=380, height=240)
    )
    return styled(chart, "When features emerge", "share of the final features that a snapshot has, a line a seed")


def emergence_heatmap(name: str, trajectory: Trajectory) -> Any:
    """An Altair figure: each feature's cosine to its final direction, features ordered by when they emerged."""
    import altair as alt

    alive = np.flatnonzero(trajectory.alive_F)
    mean_A = trajectory.best_cosine_SxF[:, alive].mean(0)
    ordered = alive[np.lexsort((-mean_A, trajectory.emerged_F[alive]))]
    shown = thinned(ordered, 256)
    colour = alt.Color("cosine:Q", title="cosine to its final direction")
    colour = colour.scale(scheme="viridis", domain=[0.0, 1.0])
    chart = step_heatmap(shown, trajectory.best_cosine_SxF, trajectory.steps, "earliest", "cosine", colour)
    return styled(chart, "Each feature's way to its final direction", name)
