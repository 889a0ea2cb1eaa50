"""The choice of the best member of a population."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def l0_asked_of(member: dict[str, Any]) -> float | None:
    """The target L0 (or k) of a member of results.json; None if it was trained with a fixed coefficient."""
    return member.get("k") or member.get("target_l0")


def best_of_results(members: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best of the members of results.json (see `best_member`); members that failed are left out."""
    trained = {member["id"]: member for member in members if member.get("metrics") and not member.get("failed")}
    asked = {name: l0_asked_of(member) for name, member in trained.items()}
    best = best_member({name: member["metrics"] for name, member in trained.items()}, asked)
    return trained[best] if best else None
