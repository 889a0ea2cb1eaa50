"""How much is explained at which sparsity: a curve a kind, over the runs of a grid, with the spread over seeds.

Everything comes from the runs' config.json and results.json: held-out figures of the exported weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.plots.style import INK, KIND_STYLES, OTHER_STYLE, save, styled
from analysis.runs import families
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.files import write_json

METRICS = {"explained_variance": "explained variance", "ce_recovered": "cross-entropy recovered"}
ON_A_CURVE = ("activation", "sparsity", "seed")  # what may differ in one panel


@dataclass(frozen=True)
class Spread:
    """Over seeds; the deviation is that of a sample (n - 1), None of a single seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Point:
    """Members that differ by nothing but their seed. `metrics` has l0 and those of METRICS that all of them have."""

    panel: str  # the settings that differ between curves of one kind, in words; "" where none does
    kind: str
    asked: float  # of k, target_l0 or sparsity
    seeds: tuple[int, ...]
    metrics: dict[str, Spread]


@dataclass(frozen=True)
class Frontier:
    """All points, ordered by panel, kind and sparsity, and what they have in common."""

    points: list[Point]
    failed: list[str]  # members without figures: their training was stopped
    settings: dict[str, Any]  # the same in all members
    runs: list[str]

    @property
    def has_curve(self) -> bool:
        """Whether one kind was trained at two or more sparsities."""
        curves = [(p.panel, p.kind) for p in self.drawn]
        return any(curves.count(curve) > 1 for curve in curves)

    @property
    def drawn(self) -> list[Point]:
        """Those that have a place on a logarithmic axis: without members of which no feature fires on any row."""
        return [point for point in self.points if point.metrics["l0"].mean > 0]

    @property
    def panels(self) -> list[str]:
        return list(dict.fromkeys(point.panel for point in self.drawn))

    @property
    def title(self) -> str:
        names = (("model",), ("layer", "hook"), ("hidden_dim",), ("rows",))
        parts = [[families.in_words(self.settings, [n]) for n in group if n in self.settings] for group in names]
        return ", ".join(" ".join(part) for part in parts if part)


def compute(*runs: Path) -> Frontier:
    """The frontier of one or several finished runs. Raises InputError for a run without results, or given twice."""
    members = [
        ({**families.settings_of(run, member), "penalty": penalty_of(member)}, member)
        for run in map(FinishedRun.open, runs)
        for member in run.results["members"]
    ]
    differing = families.differing([settings for settings, _ in members])
    between = [name for name in differing if name not in ON_A_CURVE]
    groups: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
    for settings, member in members:
        panel = families.in_words(settings, between)
        same = groups[panel, member["activation"], member[member["sparsity_by"]]]
        if member["seed"] in same:
            raise InputError(f"{member['id']} is in these runs twice, with the same seed: give each run once")
        same[member["seed"]] = member
    points = [Point(*key, *spread(same)) for key, same in groups.items() if any(m["metrics"] for m in same.values())]
    kinds = [*KIND_STYLES, *sorted({point.kind for point in points} - set(KIND_STYLES))]
    panels = list(dict.fromkeys(point.panel for point in points))
    return Frontier(
        points=sorted(points, key=lambda p: (panels.index(p.panel), kinds.index(p.kind), p.asked)),
        failed=[member["id"] for _, member in members if not member["metrics"]],
        settings=families.common([settings for settings, _ in members]),
        runs=[run.resolve().name for run in runs],
    )


def penalty_of(member: dict[str, Any]) -> str | None:
    """The setting that fixes the sparsity, an L0 or a coefficient: they share no curve. None for a kind with a k."""
    return None if member["sparsity_by"] == "k" else member["sparsity_by"]


def spread(members: dict[int, dict[str, Any]]) -> tuple[tuple[int, ...], dict[str, Spread]]:
    """The seeds that have figures, and the mean and deviation over them of each metric that all of them have."""
    measured = {seed: member["metrics"] for seed, member in sorted(members.items()) if member["metrics"]}
    spreads = {}
    for name in ("l0", *METRICS):
        values = [metrics[name] for metrics in measured.values() if metrics.get(name) is not None]
        if len(values) == len(measured):
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            spreads[name] = Spread(float(np.mean(values)), deviation)
    return tuple(measured), spreads


def write(frontier: Frontier, folder: Path) -> list[Path]:
    """analysis/frontier.json, figures/frontier.png and .svg in a folder; returns the paths of the figures."""
    drawn = figure(frontier)
    (folder / "analysis").mkdir(parents=True, exist_ok=True)
    write_json(folder / "analysis" / "frontier.json", {"schema": 1, **asdict(frontier)})
    return save(drawn, folder / "figures" / "frontier")


def figure(frontier: Frontier) -> Any:
    """An Altair figure: each metric against L0 (log scale), a curve a kind, bars of one deviation over seeds.

    A panel for each setting in which curves of one kind differ. Raises InputError where no kind has two sparsities.
    """
    if not frontier.has_curve:
        raise InputError(
            "a frontier needs one kind at two or more sparsities: train with --target-l0 16 32 or --k 16 32"
        )
    import altair as alt

    metrics = [name for name in METRICS if any(name in point.metrics for point in frontier.drawn)]
    seeds = sorted({len(point.seeds) for point in frontier.drawn})
    counts = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    means = "one seed" if seeds == [1] else f"mean of {counts} seeds, bars: ± one standard deviation"
    text = frontier.settings.get("text", "several texts")
    dead = len(frontier.points) - len(frontier.drawn)
    not_drawn = [f"not drawn: {dead} at L0 0, where no feature fires"] if dead else []
    charts = [metric_chart(frontier, metric) for metric in metrics]
    chart = alt.vconcat(*charts, spacing=28) if len(frontier.panels) > 1 else alt.hconcat(*charts, spacing=36)
    return (
        styled(chart, frontier.title, [f"{means}; held-out rows of the {text}", *not_drawn])
        .configure_legend(labelFontSize=13, labelColor=INK, symbolSize=110, symbolOpacity=1, offset=24, rowPadding=6)
        .configure_header(labelFontSize=13, labelColor=INK, labelFontWeight="bold", labelAnchor="start", title=None)
    )


def metric_chart(frontier: Frontier, metric: str) -> Any:
    import altair as alt

    points = [point for point in frontier.drawn if metric in point.metrics]
    rows: list[dict[str, Any]] = [
        {"panel": p.panel, "kind": p.kind, "l0": p.metrics["l0"].mean, "mean": p.metrics[metric].mean}
        | bar(p.metrics[metric])
        for p in points
    ]
    kinds = list(dict.fromkeys(point.kind for point in frontier.drawn))
    colours, shapes = zip(*(KIND_STYLES.get(kind, OTHER_STYLE) for kind in kinds), strict=True)
    l0s = [row["l0"] for row in rows]
    low, high = min(l0s) / 1.15, max(l0s) * 1.15
    ticks = [2**i for i in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    x = alt.X("l0:Q", title="L0: active features a row (log scale)")
    x = x.scale(type="log", domain=[low, high], nice=False).axis(values=ticks, format="~g", grid=True)
    y = alt.Y("mean:Q", title=METRICS[metric]).scale(zero=False, padding=14).axis(format=".3~f", tickCount=6)
    colour = alt.Color("kind:N", title=None).scale(domain=kinds, range=list(colours))
    shape = alt.Shape("kind:N", title=None).scale(domain=kinds, range=list(shapes))
    base = alt.Chart().encode(x=x, color=colour)
    layers = [
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_errorbar(ticks={"size": 13}, thickness=1.4, opacity=1).encode(
            alt.Y("low:Q", title=METRICS[metric]), y2="high:Q"
        ),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=shape),
    ]
    wide, tall = (300, 220) if len(frontier.panels) > 1 else (430, 330)
    layered = alt.layer(*layers, data=alt.Data(values=rows)).properties(width=wide, height=tall)
    return layered.facet(alt.Facet("panel:N", title=None).sort(frontier.panels), columns=3) if wide == 300 else layered


def bar(spread: Spread) -> dict[str, float]:
    """The ends of an error bar, at the mean itself for a single seed."""
    deviation = spread.deviation or 0.0
    return {"low": spread.mean - deviation, "high": spread.mean + deviation}
