"""The differences between the settings or environments of two runs, in words for an error or a message."""

from __future__ import annotations

from typing import Any

from harvest.errors import shortened
from harvest.flags import named


def differences(old: dict, new: dict) -> str:
    """The values that differ, as in `jax 0.10.1, not 0.10.2`."""
    return ", ".join(f"{name} {before}, not {now}" for name, before, now in changed(old, new))


def differing_flags(old: dict, new: dict) -> str:
    """The requested settings that differ, as in `--lr 0.001, not 0.01; other files for --dataset`."""
    asked = ({**tree, "files": None, "preset": tree.get("preset", {}).get("name")} for tree in (old, new))
    words = {name: f"{named(name)} {flag_text(before)}, not {flag_text(now)}" for name, before, now in changed(*asked)}
    files = changed(old.get("files", {}), new.get("files", {}))
    words |= {name: f"other files for {named(name)}" for name, _, _ in files}
    return "; ".join(words.values()) or "another version of its preset"


def changed(old: dict, new: dict) -> list[tuple[str, Any, Any]]:
    """(name, old value, new value) of each value that differs between two nested dictionaries."""
    flat_old, flat_new = flatten(old), flatten(new)
    values = [(name, flat_old.get(name), flat_new.get(name)) for name in sorted(flat_old | flat_new)]
    return [(name, before, now) for name, before, now in values if before != now]


def flag_text(value: Any) -> str:
    """The value of a flag as a user writes it. None, and no value, are always defaults."""
    if value is None or value == []:
        return "the default"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return " ".join(map(flag_text, value)) if isinstance(value, list) else shortened(value)


def flatten(tree: dict) -> dict:
    flat: dict = {}
    for key, value in tree.items():
        flat |= flatten(value) if isinstance(value, dict) else {key: value}
    return flat
