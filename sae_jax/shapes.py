"""The required content of a run's JSON files, checked once when a run is opened.

A run directory may come from anybody, and a valid checksum does not prove who wrote it. The checks ensure that ids are
file names and not paths, that numbers are finite, and that all needed keys are there. Other keys are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from harvest.errors import InputError, shortened
from harvest.files import FILE_NAME, read_json
from harvest.identity import SAMPLED
from harvest.request import ADDED_LATER, HarvestRequest
from sae_jax.config import TrainConfig
from sae_jax.members import Member

Name = Annotated[str, StringConstraints(pattern=FILE_NAME)]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
AXES = re.compile(r"_([A-Z0-9](?:x[A-Z0-9])*)$")  # axes at the end of the name of an array


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ModelHashes(Shape):
    fingerprint: Text | None
    weights_hash: Text
    tokenizer_hash: Text


class RowSums(Shape):
    rows: tuple[list[float], list[float]]
    mean: float
    deviation: float
    length: float = Field(gt=0)


class Identity(Shape):
    """Facts by which the rows of a store are recognized."""

    control: Text | None
    windows_hash: Text
    hook_name: Text
    seq_len: Count
    keep_first_position: bool
    dtype: Literal["float16", "bfloat16", "float32", "int8"]
    model_dtype: Text = "float32"
    d_model: Count
    model: ModelHashes
    rows: Count
    held_out_rows: Count
    rows_crc32: Count
    sums: RowSums

    @model_validator(mode="after")
    def sums_are_of_all(self) -> Identity:
        if [len(rows) for rows in self.sums.rows] != [min(SAMPLED, n) for n in (self.rows, self.held_out_rows)]:
            raise ValueError(f"sums.rows must be of {SAMPLED} rows of each split, or of all rows if there are fewer")
        return self


class Source(Shape):
    asked: Text
    location: Text
    fell_back: bool
    fingerprint: Text


class Store(Shape):
    directory: Name
    hook_name: Text
    rows: Count
    model: Source
    dataset: Source
    identity: Identity
    control: Text | None = None
    bos: list[Count] = []
    model_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    versions: dict[str, Text] = {}


class Asked(Shape):
    """The requested settings as written by `to_json`: exactly the fields, with the content of a members' file."""

    harvest: dict[str, Any]
    train: dict[str, Any]

    @model_validator(mode="after")
    def can_be_asked(self) -> Asked:
        members = self.train.get("members", "missing")
        if not (members is None or members and isinstance(members, list) and all(isinstance(m, dict) for m in members)):
            raise ValueError("train.members must be null or a list of objects")
        refuse_others(HarvestRequest, ADDED_LATER | self.harvest, "harvest")
        refuse_others(TrainConfig, self.train | {"members": None}, "train")
        return self


def refuse_others(cls: type, values: dict[str, Any], where: str) -> None:
    """Raise ValueError unless `values` are valid for the fields of a dataclass, with none missing or unknown."""
    names = {field.name for field in fields(cls)}
    for trouble, keys in (("lacks", names - values.keys()), ("has unknown", values.keys() - names)):
        if keys:
            raise ValueError(f"{where} {trouble} {', '.join(sorted(keys))}")
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
    """The content of config.json."""

    asked: Asked
    stores: list[Store] = Field(min_length=1)
    environment: Environment
    total_steps: Count
    l0_asked: dict[Name, float | None] = Field(min_length=1)
    snapshots: Count


class Failed(Shape):
    step: Count
    reason: Text


class Numbers(Shape):
    """A record whose further keys are numbers or null."""

    __pydantic_extra__: dict[str, float | None]
    model_config = ConfigDict(extra="allow")


class Metrics(Numbers):
    explained_variance: float = Field(ge=-1e30, le=1)
    l0: float = Field(ge=0, le=1e30)


class TrainedMember(Shape):
    """A member in results.json: its settings, which are those of `Member`, and its metrics."""

    id: Name
    hook: Name
    sparsity_control: Literal["k", "target_l0", "sparsity"]
    failed: Failed | None
    metrics: Metrics | None
    intervals: dict[str, tuple[float, float] | None] = {}
    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def says_how_sparse_and_how_good(self) -> TrainedMember:
        settings = {field.name for field in fields(Member)}
        refuse_others(Member, {name: value for name, value in self if name in settings}, "its settings")
        if getattr(self, self.sparsity_control) is None:
            raise ValueError(f"{self.sparsity_control} is null, but sparsity_control names it")
        if (self.failed is None) == (self.metrics is None):
            raise ValueError("exactly one of metrics and failed must be null")
        return self


class Used(Shape):
    """The model or the text that was used."""

    name: Text
    fell_back: bool


class HeldOut(Shape):
    rows: Count
    windows: Count
    documents: Count


class Timing(Numbers):
    steps: Count
    training_seconds: float


class LossRecovered(Shape):
    windows_asked: Count
    windows: Count
    documents: Count


class Results(Shape):
    """The content of results.json."""

    model: Used
    dataset: Used | None = None  # absent in runs of earlier versions, like held_out
    held_out: HeldOut | None = None
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


class MetricsLine(Shape):
    """A line of metrics.jsonl."""

    step: Count
    member: Name
    loss: float
    __pydantic_extra__: dict[str, float]
    model_config = ConfigDict(extra="allow")


SHAPES: dict[str, type[Shape]] = {"config.json": Config, "results.json": Results}


def read_shaped(path: Path, advice: str, shape: type[Shape] | None = None) -> dict[str, Any]:
    """Read and check a JSON file of a run. Raises InputError that names the file and the key."""
    record = read_json(path, advice)
    check(record, shape or SHAPES[path.name], path, advice)
    return record


def check(record: Mapping[str, Any], shape: type[Shape], path: Path, advice: str) -> None:
    try:
        shape.model_validate_json(json.dumps(record, allow_nan=False))
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        key = shortened(".".join(map(str, first["loc"])))
        value = "" if first["type"] in ("missing", "value_error") else f"; it is {shortened(repr(first['input']))}"
        more = f", and {len(others)} more" if others else ""
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{path} is malformed at {key or 'its top level'} ({problem}{value}{more}): {advice}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is malformed ({error}): {advice}") from None


@contextmanager
def read_as(path: Path, advice: str) -> Iterator[None]:
    """Turn errors from missing, unknown or mistyped keys into an InputError that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is malformed ({type(error).__name__}: {error}): {advice}") from error


def check_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    advice: str,
    sizes: Mapping[str, int] | None = None,
    below: Mapping[str, int] | None = None,
) -> None:
    """Raise InputError unless all arrays are numeric and their sizes agree with the axes at the end of their names.

    `sizes` are known sizes by the letter of the axis. `below` names the arrays that must hold whole numbers from -1 to
    below the given limit.
    """
    known, below = dict(sizes or {}), below or {}

    def need(ok: bool, name: str, trouble: str) -> None:
        if not ok:
            raise InputError(f"{path} is malformed at {name} ({trouble}): {advice}")

    for name, array in arrays.items():
        suffix = AXES.search(name)
        axes = suffix[1].split("x") if suffix else []
        need(array.dtype.kind in "biuf", name, f"it is of type {array.dtype}, not numeric")
        need(array.ndim == len(axes), name, f"it has {array.ndim} axes, not {len(axes)}")
        for axis, size in zip(axes, array.shape, strict=True):
            expected = int(axis) if axis.isdigit() else known.setdefault(axis, size)
            need(size == expected, name, f"its size along {axis} is {size}, not {expected}")
        if name in below:
            need(array.dtype.kind in "iu", name, f"it is of type {array.dtype}, not of whole numbers")
            ends = (int(array.min()), int(array.max())) if array.size else (0, 0)
            need(
                ends[0] >= -1 and ends[1] < below[name],
                name,
                f"its values are {ends[0]} to {ends[1]}, not -1 to below {below[name]}",
            )
