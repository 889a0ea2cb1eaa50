"""What a run's JSON files must hold for the analyses to use them: checked once, where a run is opened.

A run directory may come from anybody, and a right checksum does not say who wrote it. So ids are names of files and
lead nowhere else, numbers are finite, and what is looked up is there. Further keys are left alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from harvest.errors import InputError
from harvest.files import read_json
from harvest.request import HarvestRequest
from sae_jax.config import TrainConfig

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9_+.-]{0,199}$")]  # of a file, and no path
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=-1, le=1)]


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Source(Shape):
    asked: Text
    location: Text
    fell_back: bool


class Store(Shape):
    directory: Name
    hook_name: Text
    rows: Count
    model: Source
    dataset: Source
    control: Text | None = None
    versions: dict[str, Text] = {}


class Asked(Shape):
    """What was asked for, as `to_json` writes it: all fields and no other, in the place of a file of members its content."""

    harvest: dict[str, Any]
    train: dict[str, Any]

    @model_validator(mode="after")
    def can_be_asked(self) -> Asked:
        members = self.train.get("members")
        if not (members is None or members and isinstance(members, list) and all(isinstance(m, dict) for m in members)):
            raise ValueError("train.members must be null or a list of objects")
        refuse_others(HarvestRequest, {"control": None} | self.harvest, "harvest")
        refuse_others(TrainConfig, self.train | {"members": None}, "train")
        return self


def refuse_others(cls: type, values: dict[str, Any], where: str) -> None:
    """Raises ValueError where a dataclass cannot be made of these values, or lacks one."""
    names = {field.name for field in fields(cls)}
    if other := names ^ values.keys():
        raise ValueError(f"{where} {'lacks' if other & names else 'has besides'} {', '.join(sorted(other))}")
    try:
        TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join([where, *map(str, first['loc'])])}: {first['msg']}") from None


class Environment(Shape):
    sae_jax: Text = Field(alias="sae-jax")
    backend: Text
    device: Text
    __pydantic_extra__: dict[str, Text]
    model_config = ConfigDict(extra="allow")


class Config(Shape):
    """config.json"""

    asked: Asked
    stores: list[Store] = Field(min_length=1)
    environment: Environment
    total_steps: Count
    l0_asked: dict[Name, float | None] = Field(min_length=1)
    snapshots: Count


class Failed(Shape):
    step: Count
    reason: Text


class Metrics(Shape):
    explained_variance: float
    l0: float = Field(ge=0)
    __pydantic_extra__: dict[str, float | None]
    model_config = ConfigDict(extra="allow")


class TrainedMember(Shape):
    """A member of results.json: its settings, and what was measured."""

    id: Name
    activation: Name
    layer: Count
    hook: Name
    hidden_dim: Count
    lr: float
    k: Count | None
    target_l0: float | None
    sparsity: float | None
    seed: Count
    warmup: float
    normalization: Name
    aux_coefficient: float | None
    dead_rule: Name
    sparsity_by: Literal["k", "target_l0", "sparsity"]
    failed: Failed | None
    metrics: Metrics | None
    intervals: dict[str, tuple[float | None, float | None]] = {}

    @model_validator(mode="after")
    def says_how_sparse_and_how_good(self) -> TrainedMember:
        if getattr(self, self.sparsity_by) is None:
            raise ValueError(f"{self.sparsity_by} is null, and sparsity_by names it")
        if (self.failed is None) == (self.metrics is None):
            raise ValueError("it must have either metrics or failed, and the other null")
        return self


class Model(Shape):
    name: Text
    fell_back: bool


class Timing(Shape):
    steps: Count
    training_seconds: float
    __pydantic_extra__: dict[str, float | None]
    model_config = ConfigDict(extra="allow")


class LossRecovered(Shape):
    windows_asked: Count


class Results(Shape):
    """results.json"""

    model: Model
    backend: Text
    members: list[TrainedMember] = Field(min_length=1)
    timing: Timing
    loss_recovered: LossRecovered | None = None

    @model_validator(mode="after")
    def names_each_once(self) -> Results:
        ids = [member.id for member in self.members]
        if twice := next((name for name in ids if ids.count(name) > 1), None):
            raise ValueError(f"two members are named {twice}")
        return self


SHAPES: dict[str, type[Shape]] = {"config.json": Config, "results.json": Results}


def read_shaped(path: Path, advice: str, shape: type[Shape] | None = None) -> dict[str, Any]:
    """`read_json`, and a check of what is in it. Raises InputError that names the file and the key."""
    record = read_json(path, advice)
    check(record, shape or SHAPES[path.name], path, advice)
    return record


def check(record: Mapping[str, Any], shape: type[Shape], path: Path, advice: str) -> None:
    try:
        shape.model_validate_json(json.dumps(record, allow_nan=False))
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        key = ".".join(map(str, first["loc"]))
        value = "" if first["type"] in ("missing", "value_error") else f"; it is {shortened(first['input'])}"
        more = f", and {len(others)} more" if others else ""
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path} is malformed at {key or 'its top'} ({said}{value}{more}): {advice}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is malformed ({error}): {advice}") from None


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refuse_links(run: Path) -> None:
    """Raises InputError for a link to a folder, or to nothing, within a run: what is written there would go elsewhere.

    W&B makes such links in a folder of its own.
    """
    for folder, folders, files in os.walk(run):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        links += [name for name in files if os.path.islink(at := os.path.join(folder, name)) and not os.path.isfile(at)]
        links += [name for name in files if name == ".lock" and os.path.islink(os.path.join(folder, name))]
        if links:
            raise InputError(
                f"{Path(folder) / links[0]} is a link to {os.readlink(os.path.join(folder, links[0]))}: "
                "what is written to a run must stay in it; put the folder itself there, or remove the link"
            )
        if Path(folder) == run and "wandb" in folders:
            folders.remove("wandb")
