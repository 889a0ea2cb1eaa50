"""Explained variance and cross-entropy recovered against sparsity: a curve for each kind, with the spread over seeds.

All numbers are the held-out metrics of the exported weights in the runs' results.json.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import product, starmap
from pathlib import Path
from typing import Any

from analysis.runs import families
from analysis.runs.families import Spread
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.files import write_json
from sae_jax.config import BASELINES, SPARSITY_CONTROLS
from sae_jax.members import Member, kind_name

METRICS = {"explained_variance": "explained variance", "ce_recovered": "cross-entropy recovered"}
ON_A_CURVE = ("activation", "baseline", "sparsity", "seed")  # settings that may differ within a panel


@dataclass(frozen=True)
class Point:
    """Members that differ only in their seed. `metrics` has l0 and those of METRICS that all of the members have."""

    panel: str  # the settings that differ between curves of one kind, in words; "" if none differs
    kind: str
    asked: float  # the value of k, target_l0 or sparsity
    seeds: tuple[int, ...]
    metrics: dict[str, Spread]


@dataclass(frozen=True)
class Frontier:
    """All points, ordered by panel, kind and sparsity, and the settings that they have in common."""

    points: list[Point]
    failed: list[str]  # members without results, because their training failed
    settings: dict[str, Any]  # settings that are the same in all members
    runs: list[str]

    @property
    def has_curve(self) -> bool:
        """Whether one kind was trained at two or more sparsities."""
        curves = [(p.panel, p.kind) for p in self.drawn]
        return any(curves.count(curve) > 1 for curve in curves)

    @property
    def drawn(self) -> list[Point]:
        """The points with an L0 above 0, which have a position on a logarithmic axis."""
        return [point for point in self.points if point.metrics["l0"].mean > 0]

    @property
    def panels(self) -> list[str]:
        return list(dict.fromkeys(point.panel for point in self.drawn))

    @property
    def title(self) -> str:
        names = (("model",), ("layer", "hook"), ("hidden_dim",), ("rows",))
        parts = [[families.in_words(self.settings, [n]) for n in group if n in self.settings] for group in names]
        return ", ".join(" ".join(part) for part in parts if part)


def compute_frontier(*runs: Path) -> Frontier:
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
        same = groups[panel, Member.from_results(member).kind, member[member["sparsity_control"]]]
        if member["seed"] in same:
            raise InputError(f"{member['id']} is twice in these runs, with the same seed: give each run once")
        same[member["seed"]] = member
    points = [Point(*key, *spread(same)) for key, same in groups.items() if any(m["metrics"] for m in same.values())]
    kinds = list(starmap(kind_name, product(SPARSITY_CONTROLS, ("trained", *BASELINES))))
    panels = list(dict.fromkeys(point.panel for point in points))
    return Frontier(
        points=sorted(points, key=lambda p: (panels.index(p.panel), kinds.index(p.kind), p.asked)),
        failed=[member["id"] for _, member in members if not member["metrics"]],
        settings=families.common([settings for settings, _ in members]),
        runs=[run.resolve().name for run in runs],
    )


def penalty_of(member: dict[str, Any]) -> str | None:
    """ "target_l0" or "sparsity", whichever was set; None for kinds with a k. The two never share a curve."""
    return None if member["sparsity_control"] == "k" else member["sparsity_control"]


def spread(members: dict[int, dict[str, Any]]) -> tuple[tuple[int, ...], dict[str, Spread]]:
    """(the seeds that have results, mean and standard deviation over them of each metric that all of them have)."""
    measured = {seed: member["metrics"] for seed, member in sorted(members.items()) if member["metrics"]}
    spreads = {}
    for name in ("l0", *METRICS):
        values = [metrics[name] for metrics in measured.values() if metrics.get(name) is not None]
        if len(values) == len(measured):
            spreads[name] = Spread.of(values)
    return tuple(measured), spreads


def write_frontier(frontier: Frontier, folder: Path) -> None:
    """Write frontier.json, which holds all points."""
    write_json(folder / "frontier.json", {"schema": 1, **asdict(frontier)})
