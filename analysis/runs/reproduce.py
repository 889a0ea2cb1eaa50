"""The commands that reproduce a run or continue it, from its config.json and results.json."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from harvest.request import ADDED_LATER, HarvestRequest
from sae_jax.config import TrainConfig

SOURCES = {"model_name": "model", "dataset": "dataset"}  # flags, and what they choose in the records of stores


def reproduction_command(config: dict[str, Any], results: dict[str, Any]) -> str:
    """The command that trains the same run: all flags that differ from their defaults, including those of a preset.

    The bundled model and text are named if they replaced unreachable defaults, and so is the number format of the model
    if it is not float32. A file of members is always called members.json. Its content is in config.json under
    `asked.train.members`.
    """
    store = config["stores"][0]
    used = {name: "bundled" for name, kind in SOURCES.items() if store[kind]["fell_back"]}
    used |= {"model_dtype": store["model_dtype"]} if "model_dtype" in store else {}
    words = training_flags(config["asked"] | {"harvest": ADDED_LATER | config["asked"]["harvest"] | used})
    words += flag_of("snapshots", config["snapshots"]) if "snapshots" in config else []
    words += flag_of("ce_windows", results.get("loss_recovered", {}).get("windows_asked", 0))
    return shlex.join(["python", "main.py", *words])


def resume_command(config: dict[str, Any], path: Path) -> str:
    """The command that continues an interrupted run, with the settings that were asked for."""
    words = training_flags(config["asked"] | {"harvest": ADDED_LATER | config["asked"]["harvest"]})
    words += flag_of("snapshots", config["snapshots"]) if "snapshots" in config else []
    return shlex.join(["python", "main.py", *words, "--run-dir", str(path), "--resume"])


def training_flags(settings: dict[str, Any]) -> list[str]:
    """The flags of all settings that differ from their defaults."""
    words: list[str] = []
    rows = settings["harvest"]["rows"]
    for cls, part in ((HarvestRequest, "harvest"), (TrainConfig, "train")):
        for field in fields(cls):
            if rows and cls is HarvestRequest and field.name != "rows":
                continue  # the store of the rows knows the others
            value = settings[part].get(field.name, field.default)
            value = tuple(value) if isinstance(field.default, tuple) else value
            if value != field.default:
                words += flag_of(field.name, value)
    return words


def flag_of(name: str, value: Any) -> list[str]:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    if name == "members":
        return ["--members", "members.json"]
    return [f"--{dashed}", *map(str, value if isinstance(value, tuple) else (value,))]
