"""Charts of how dictionaries change over the steps of training: their metrics, and when their features emerge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from analysis.comparison.emergence import RECOGNIZABLE, Trajectory
from analysis.plots.heatmap import step_heatmap
from analysis.plots.style import kind_colour, not_from_zero, styled, thinned, with_room

FEW_POINTS = 6  # a curve with fewer points shows each, so that it does not look like a whole training
MOST_POINTS = 80  # points of a curve that are drawn, at most
LABEL_SHARE = 0.16  # of the width of an axis that the label of a step needs
CURVES = {"mse": "loss (mean squared error, log scale)", "explained_variance": "explained variance"}


def evenly_spaced(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most MOST_POINTS evenly spaced lines, including the last one."""
    stride = -(-len(lines) // MOST_POINTS)
    return lines[::-1][::stride][::-1]


def training_curves_chart(
    curves: Mapping[str, list[dict[str, float]]], kinds: Mapping[str, str], fitted: bool = False
) -> Any:
    """An Altair figure: squared error and explained variance during training, a line for each member.

    `fitted` says that the decoders were fitted after training, which the curves do not show.
    """
    rows: list[dict[str, Any]] = [
        {"member": name, "kind": kinds[name], "step": line["step"]}
        | {what: line[what] for what in CURVES if line.get(what) is not None}
        for name, lines in curves.items()
        for line in evenly_spaced(lines)
    ]
    has_few_points = max(map(len, curves.values()), default=0) < FEW_POINTS
    base = alt.Chart().mark_line(opacity=0.8, strokeWidth=1.6, point=has_few_points)
    drawn = {what: [float(row[what]) for row in rows if what in row] for what in CURVES}
    errors = [error for error in drawn["mse"] if error > 0] or [1.0]
    scales = {
        "mse": alt.Scale(type="log", domain=[min(errors) / 1.1, max(errors) * 1.1]),
        "explained_variance": not_from_zero(drawn["explained_variance"]),
    }
    panels = []
    for what, title in CURVES.items():
        positive = base.transform_filter(f"datum.{what} > 0") if what == "mse" else base
        panels.append(
            positive.encode(
                x=alt.X("step:Q", title="training step").axis(format=",d", tickCount=6, tickMinStep=1),
                y=alt.Y(f"{what}:Q", title=title, scale=scales[what]),
                color=kind_colour(kinds[name] for name in curves),
                detail="member:N",
                tooltip=["member:N", "step:Q", alt.Tooltip(f"{what}:Q", format=".4g")],
            ).properties(width=360, height=240)
        )
    chart = alt.hconcat(*panels, spacing=32, data=alt.Data(values=rows))
    before = ", before the decoder is fitted at the end" if fitted else ""
    subtitle = [
        f"one line per member, measured on the training batches{before}",
        "the last points therefore differ from the table of members, which is on held-out rows",
    ]
    return styled(chart, "Loss and explained variance", subtitle)


def step_axis(steps: Sequence[int]) -> Any:
    """The encoding of `step` along x from step 0 to the last of the steps, as a logarithm from the first snapshot on.

    A label stands at each of these steps that has room for it, and at step 0 and the last one in any case.
    """
    scale = alt.Scale(type="symlog", constant=max(1, steps[1]), domain=[0, steps[-1]], nice=False)
    labelled = with_room(steps, np.log1p(np.array(steps) / scale.constant), LABEL_SHARE)
    axis = alt.Axis(values=labelled, format=",d", grid=True, labelOverlap=False)
    return alt.X("step:Q", title="training step (0, then log scale)").scale(scale).axis(axis)


def emergence_curves(trajectories: Mapping[str, Trajectory], kinds: Mapping[str, str]) -> Any:
    """An Altair figure: the share of final features that are recognizable at each step, a line for each dictionary."""
    rows = [
        {"member": name, "kind": kinds[name], "step": step, "share": float(share)}
        for name, trajectory in trajectories.items()
        for step, share in zip(trajectory.steps, trajectory.recognizable_S, strict=True)
    ]
    marks = alt.Chart(alt.Data(values=rows)).mark_line(point=True, opacity=0.8).properties(width=380, height=240)
    chart = marks.encode(
        x=step_axis(next(iter(trajectories.values())).steps),
        y=alt.Y("share:Q", title=f"features recognizable (cosine ≥ {RECOGNIZABLE})").scale(domain=[0, 1]),
        color=kind_colour(kinds[name] for name in trajectories),
        detail="member:N",
        tooltip=["member:N", "step:Q", alt.Tooltip("share:Q", format=".3f")],
    )
    return styled(chart, "When features emerge", "share of the final features in each snapshot, one line per member")


def emergence_heatmap(name: str, trajectory: Trajectory) -> Any:
    """An Altair figure: each feature's cosine to its final direction, with features ordered by step of emergence."""
    alive = np.flatnonzero(trajectory.alive_F)
    mean_A = trajectory.best_cosine_SxF[:, alive].mean(0)
    ordered = alive[np.lexsort((-mean_A, trajectory.emerged_F[alive]))]
    shown = thinned(ordered, 256)
    cosine_NxS = trajectory.best_cosine_SxF[:, shown].T
    chart = step_heatmap(cosine_NxS, trajectory.steps, "earliest", "cosine to its final direction", (0.0, 1.0))
    return styled(chart, "Cosine of each feature to its final direction", name)
