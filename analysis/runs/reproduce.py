"""The command that reproduces a run, from its config.json and results.json."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from harvest.request import HarvestRequest
from sae_jax.config import TrainConfig


def reproduction_command(config: dict[str, Any], results: dict[str, Any]) -> str:
    """The command that trains the same run: all flags that differ from their defaults, including those of a preset.

    A file of members is always called members.json. Its content is in config.json under `asked.train.members`.
    """
    words = ["python", "main.py"]
    for cls, part in ((HarvestRequest, "harvest"), (TrainConfig, "train")):
        asked = config["asked"][part]
        for field in fields(cls):
            value = asked.get(field.name, field.default)
            value = tuple(value) if isinstance(field.default, tuple) else value
            if value != field.default:
                words += flag_of(field.name, value)
    words += flag_of("snapshots", config["snapshots"]) if "snapshots" in config else []
    words += flag_of("ce_windows", results.get("loss_recovered", {}).get("windows_asked", 0))
    return shlex.join(words)


def flag_of(name: str, value: Any) -> list[str]:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    if name == "members":
        return ["--members", "members.json"]
    return [f"--{dashed}", *map(str, value if isinstance(value, tuple) else (value,))]
