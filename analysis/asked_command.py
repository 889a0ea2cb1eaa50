"""The command that trains a run again, from what its config.json says was asked for."""

from __future__ import annotations

import shlex
from dataclasses import Field, fields
from typing import Any

from harvest.request import HarvestRequest
from sae_jax.config import TrainConfig

MEMBERS_FILE = "members.json"


def asked_command(asked: dict[str, Any]) -> str:
    """`python main.py` with every flag that is not at its default; a list of members is named as MEMBERS_FILE.

    A preset's flags are written out, so that the command does not depend on what the preset says later.
    """
    words = ["python", "main.py"]
    for cls, values in ((HarvestRequest, asked["harvest"]), (TrainConfig, asked["train"])):
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name == "target_l0" and asked["train"]["sparsity"]:
                continue  # a fixed coefficient is in its place
            words += flag_words(field, values.get(field.name, field.default))
    return shlex.join(words)


def flag_words(field: Field, value: Any) -> list[str]:
    """The flag with its values; nothing where they are the default."""
    plain = tuple(value) if isinstance(value, list) and field.name != "members" else value
    if plain == field.default or value is None:
        return []
    name = field.name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if field.name == "members":
        return ["--members", MEMBERS_FILE]
    return [f"--{name}", *map(str, plain if isinstance(plain, tuple) else (plain,))]
