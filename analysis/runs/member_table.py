"""The members of a run as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.runs import families
from analysis.runs.best_member import best_of_results, l0_asked_of

TABLE_METRICS = ("explained_variance", "l0", "dead_fraction", "ce_recovered", "mse", "cosine")


def member_rows(members: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each member of results.json (by id): a star for the best, the target L0, the metrics, the settings."""
    best = best_of_results([{"id": name, **member} for name, member in members.items()])
    return [
        {
            "member": name,
            "best": "★" if best and best["id"] == name else "",
            "L0 target": l0_asked_of(dict(member)),
            **{metric: member["metrics"][metric] for metric in TABLE_METRICS if metric in member["metrics"]},
            **{setting: member.get(setting) for setting in families.MEMBER},
        }
        for name, member in members.items()
    ]
