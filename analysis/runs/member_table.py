"""The members of a run as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.runs import families
from sae_jax.best_member import best_members_of_results
from sae_jax.members import Member

TABLE_METRICS = (
    "explained_variance",
    "explained_variance_train",
    "l0",
    "dead_fraction",
    "ce_recovered",
    "mse",
    "cosine",
)


def member_rows(members: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each member of results.json (by id): a star for the best of each L0, its metrics and settings."""
    best = best_members_of_results(members)
    return [
        {
            "member": name,
            "best": "★" if name in best else "",
            "L0 target": Member.from_results(member).l0_asked,
            **{metric: member["metrics"][metric] for metric in TABLE_METRICS if metric in member["metrics"]},
            **{setting: member[setting] for setting in families.MEMBER},
        }
        for name, member in members.items()
    ]
