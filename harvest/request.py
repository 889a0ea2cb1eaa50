"""The request for a harvest. Its fields are flags on the command line. Imports neither torch nor jax."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import Field, asdict, dataclass, field, fields
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harvest.errors import InputError, shortened

DEFAULT_MODEL = "gpt2-small"
DEFAULT_DATASET = "NeelNanda/pile-10k"
HOOKS = ("resid_pre", "resid_mid", "resid_post", "mlp_out", "attn_out")
STORE_DTYPES = ("float16", "float32")
CONTROLS = ("random-weights",)


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


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "sae-jax"


class Site(NamedTuple):
    """A layer and hook of the model at which activations are read."""

    layer: int
    hook: str

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the hook point."""
        return f"blocks.{self.layer}.hook_{self.hook}"


NAME = Allowed(str, lambda name: bool(name.strip()), "a name, not an empty string")
NUMBER = Allowed(Integral, lambda number: number >= 0, "a whole number, 0 or more")
LENGTH = Allowed(Integral, lambda number: number >= 1, "a whole number, 1 or more")
TWO_WINDOWS = Allowed(
    Integral, lambda number: number >= 2, "a whole number, at least 2 (one window to train on, one held out)"
)
HELD_OUT = Allowed(
    Real, lambda share: 0 < share <= 1, "a number over 0 and at most 1 (with 1 there are no training rows)"
)


@dataclass(frozen=True)
class HarvestRequest:
    """The activations to harvest: the model, the sites and the text.

    `layer` and `hook` may be given as a plain int and str; they are stored as tuples. If `model_name` or `dataset` is
    None, the default is used (DEFAULT_MODEL, DEFAULT_DATASET). Only the defaults fall back to the bundled model and
    corpus if the hub cannot be reached. Raises InputError for invalid values.
    """

    model_name: str | None = flag(
        None,
        f"hub name, TransformerLens alias, local directory or 'bundled' (default: {DEFAULT_MODEL}; bundled if the hub "
        "is unreachable)",
        NAME,
    )
    dataset: str | None = flag(
        None,
        f"hub data set, .txt, .jsonl, .jsonl.gz or .parquet file, folder of such files, or 'bundled' (default: "
        f"{DEFAULT_DATASET}; bundled if the hub is unreachable)",
        NAME,
    )
    layer: tuple[int, ...] = flag((0,), "one or several layers of the model to read", NUMBER)
    hook: tuple[str, ...] = flag(("resid_pre",), "one or several points to read in each layer", choices=HOOKS)
    n_samples: int = flag(10000, "token windows to harvest, including held-out ones", TWO_WINDOWS)
    seq_len: int = flag(20, "tokens per window; a window never spans two documents", LENGTH)
    held_out: float = flag(0.1, "share of the windows held out for evaluation, in whole documents", HELD_OUT)
    keep_first_position: bool = flag(
        False, "also use the first position of each window, whose activation is an outlier in GPT-2"
    )
    store_dtype: str = flag("float16", "number format of the rows on disk", choices=STORE_DTYPES)
    control: str | None = flag(
        None,
        "harvest the same model with shuffled weights; results that it also shows do not come from learning",
        choices=CONTROLS,
    )

    def __post_init__(self) -> None:
        settle(self)
        if self.seq_len < 2 and not self.keep_first_position:
            raise InputError(f"--seq-len {self.seq_len}: must be at least 2")

    def to_json(self) -> dict[str, Any]:
        """The fields. `control` is omitted if None, so that it is no part of the names of such runs and stores."""
        fields = asdict(self)
        return fields if self.control else {name: value for name, value in fields.items() if name != "control"}

    @property
    def positions(self) -> int:
        """The number of positions of each window whose activations are harvested."""
        return self.seq_len - (not self.keep_first_position)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites: each hook of the first layer, then of the next layers."""
        return tuple(Site(layer, hook) for layer in self.layer for hook in self.hook)
