"""Fields of dataclasses that are flags on the command line, and the values that they may have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import Field, field, fields
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, NamedTuple

import numpy as np

from harvest.errors import InputError, shortened


class Allowed(NamedTuple):
    """The values that a flag may have: their type, a test, and both in words."""

    kind: type
    fits: Callable[[Any], bool]
    words: str


def flag(default, help: str, allowed: Allowed | None = None, **extra):
    """A dataclass field that is a flag on the command line. If `choices` are given, only they are allowed."""
    if choices := extra.get("choices"):
        allowed = allowed or Allowed(
            str, lambda value: value in choices, f"{'one of ' * (len(choices) > 1)}{', '.join(choices)}"
        )
    return field(default=default, metadata={"help": help, "allowed": allowed, **extra})


def settle(settings: Any) -> None:
    """Convert the fields of a dataclass of flags to plain values and tuples. Raises InputError for invalid values."""
    for part in fields(settings):
        value = plain(getattr(settings, part.name))
        if isinstance(part.default, tuple):
            value = several(part.name, value)
        for one in value if isinstance(value, tuple) else (value,):
            check(part, one)
        if isinstance(value, tuple) and (len(set(value)) < len(value) or not value and part.default):
            given = shortened(" ".join(map(str, value)))
            raise InputError(f"{named(part.name)} {given}: give at least one value, and none twice")
        object.__setattr__(settings, part.name, value)


def check(part: Field, value: Any, what: str = "") -> None:
    """Raise InputError, naming the flag or `what`, unless the value is allowed. None is, if it is the default."""
    allowed = part.metadata["allowed"]
    if allowed is None or value is None and part.default is None:
        return
    if not isinstance(value, allowed.kind) or isinstance(value, bool) or not allowed.fits(value):
        raise InputError(f"{what or named(part.name)} {shortened(value)}: must be {allowed.words}")


def named(name: str) -> str:
    return "--" + name.replace("_", "-")


def plain(value: Any) -> Any:
    """A scalar of numpy, JAX or torch as a Python number, and a path as a string. Other values are returned as given.

    A float32 or float16 becomes the shortest decimal that rounds to it: float32(1e-5) is 1e-5, not
    9.999999747378752e-06.
    """
    if isinstance(value, PathLike):
        return fspath(value)
    if getattr(value, "ndim", None) != 0:
        return value
    narrow = {"float32": np.float32, "float16": np.float16}.get(str(value.dtype).removeprefix("torch."))
    return float(str(narrow(value.item()))) if narrow else value.item()


def several(name: str, value: Any) -> tuple[Any, ...]:
    """The values of a field that spans the population, from a list, an array, a range or a single value.

    Raises InputError for a set or a dict, because the order of the members would depend on theirs.
    """
    value = plain(value)
    if isinstance(value, Set | Mapping):
        raise InputError(f"{named(name)} {shortened(value)}: has no order of its own: give a list or a tuple")
    return tuple(map(plain, value)) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)


SINGLE_LEAST, SINGLE_MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # range of normal float32 numbers


def in_float32(value: Any) -> bool:
    """Whether a number neither underflows nor overflows in float32."""
    return value == 0 or SINGLE_LEAST <= abs(value) <= SINGLE_MOST


NAME = Allowed(str, lambda name: bool(name.strip()), "a name, not an empty string")
NUMBER = Allowed(Integral, lambda number: number >= 0, "a whole number, 0 or more")
LENGTH = Allowed(Integral, lambda number: number >= 1, "a whole number, 1 or more")
COUNT = Allowed(Integral, lambda v: 1 <= v < 2**31, "a whole number, 1 or more, and below 2147483648")
SEED = Allowed(Integral, lambda v: 0 <= v < 2**31, "a whole number, 0 to 2147483647")
SHARE = Allowed(Real, lambda v: 0 <= v <= 1, "a share, 0 to 1")
POSITIVE = Allowed(Real, lambda v: in_float32(v) and v > 0, "a positive number of float32 (1.2e-38 to 3.4e38)")
NOT_NEGATIVE = Allowed(Real, lambda v: in_float32(v) and v >= 0, "0 or a positive number of float32")
BELOW_1 = Allowed(Real, lambda v: 0 <= v <= 1 - 2**-24, "0 or more and below 1, in float32, too")
