"""The choice of the best member of a population, and of the best for each requested L0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

L0_TOLERANCE = 0.1


def best_member(metrics: Mapping[str, Mapping[str, float]], l0_asked: Mapping[str, float | None]) -> str | None:
    """The id of the member with the highest explained variance among those whose L0 is within 10% of its target.

    `metrics` and `l0_asked` (the target L0) are by id. Members without a target (trained with a fixed coefficient)
    count as on target. None if there are fewer than two members, or if no member is on target.
    """

    def on_target(name: str) -> bool:
        asked = l0_asked.get(name)
        return asked is None or abs(metrics[name].get("l0", math.nan) - asked) <= L0_TOLERANCE * asked

    explained = {name: m.get("explained_variance", math.nan) for name, m in metrics.items() if on_target(name)}
    finite = {name: value for name, value in explained.items() if math.isfinite(value)}
    return max(finite, key=finite.__getitem__) if finite and len(metrics) > 1 else None


def best_of_results(members: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The name of the best of some members of results.json (see `best_member`). Members that failed are left out."""
    return best_member(*metrics_and_asked(members))


def best_members(metrics: Mapping[str, Mapping[str, float]], l0_asked: Mapping[str, float | None]) -> set[str]:
    """The ids of the best member of each requested L0: more active features explain more, so others do not compete."""
    best = (
        best_member({name: m for name, m in metrics.items() if l0_asked.get(name) == asked}, l0_asked)
        for asked in {l0_asked.get(name) for name in metrics}
    )
    return {name for name in best if name}


def best_members_of_results(members: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The names of the best of some members of results.json, for each requested L0 (see `best_members`)."""
    return best_members(*metrics_and_asked(members))


def metrics_and_asked(members: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """(metrics, requested L0) of the members of results.json that did not fail, by name."""
    from sae_jax.members import Member  # here, so that the live view of a training loads nothing for it

    trained = {name: member for name, member in members.items() if not member["failed"]}
    asked = {name: Member.from_results(member).l0_asked for name, member in trained.items()}
    return {name: member["metrics"] for name, member in trained.items()}, asked
