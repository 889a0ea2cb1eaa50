"""The request for a harvest. Its fields are flags on the command line. Imports neither torch nor jax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field, fields
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


def flag(default, help: str, **extra):
    """A dataclass field that is a flag on the command line."""
    return field(default=default, metadata={"help": help, **extra})


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
        raise InputError(
            f"--{name.replace('_', '-')} {shortened(value)}: has no order of its own: give a list or a tuple"
        )
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


@dataclass(frozen=True)
class HarvestRequest:
    """The activations to harvest: the model, the sites and the text.

    `layer` and `hook` may be given as a plain int and str; they are stored as tuples. If `model_name` or `dataset` is
    None, the default is used (DEFAULT_MODEL, DEFAULT_DATASET). Only the defaults fall back to the bundled model and
    corpus if the hub cannot be reached. Raises InputError for invalid values.
    """

    model_name: str | None = flag(
        None,
        f"hub name, alias, local directory or 'bundled' (default: {DEFAULT_MODEL}; bundled if the hub is unreachable)",
    )
    dataset: str | None = flag(
        None,
        f"hub data set, .txt, .jsonl, .jsonl.gz or .parquet file, folder of such files, or 'bundled' (default: "
        f"{DEFAULT_DATASET}; bundled if the hub is unreachable)",
    )
    layer: tuple[int, ...] = flag((0,), "one or several layers of the model to read")
    hook: tuple[str, ...] = flag(("resid_pre",), "one or several points to read in each layer", choices=HOOKS)
    n_samples: int = flag(10000, "token windows to harvest, including held-out ones")
    seq_len: int = flag(20, "tokens per window; a window never spans two documents")
    held_out: float = flag(0.1, "share of the windows held out for evaluation, in whole documents")
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
        for name in (part.name for part in fields(self)):
            value = getattr(self, name)
            object.__setattr__(self, name, several(name, value) if name in ("layer", "hook") else plain(value))

        def need(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                value = getattr(self, name)
                value = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise InputError(f"--{name.replace('_', '-')} {value}: must be {allowed}")

        for name, values in (("layer", self.layer), ("n_samples", [self.n_samples]), ("seq_len", [self.seq_len])):
            for value in values:
                if type(value) is not int:
                    raise InputError(f"--{name.replace('_', '-')} {value!r}: must be a whole number")
        for layer in self.layer:
            if layer < 0:
                raise InputError(f"--layer {layer}: must be 0 or more")
        for hook in self.hook:
            if hook not in HOOKS:
                raise InputError(f"--hook {hook}: must be one of {', '.join(HOOKS)}")
        for name in ("layer", "hook"):
            values = getattr(self, name)
            need(0 < len(values) == len(set(values)), name, f"one or several different {name}s")
        need(self.n_samples >= 2, "n_samples", "at least 2 (one window to train on, one held out)")
        need(self.seq_len >= (1 if self.keep_first_position else 2), "seq_len", "at least 2")
        need(isinstance(self.held_out, int | float), "held_out", "a number")
        need(0 < self.held_out <= 1, "held_out", "over 0 and at most 1 (with 1 there are no training rows)")
        need(self.store_dtype in STORE_DTYPES, "store_dtype", f"one of {', '.join(STORE_DTYPES)}")
        need(self.control in (None, *CONTROLS), "control", f"one of {', '.join(CONTROLS)}, or left out")
        for name in ("model_name", "dataset"):
            value = getattr(self, name)
            need(value is None or (isinstance(value, str) and bool(value.strip())), name, "a name, not an empty string")

    def to_json(self) -> dict[str, Any]:
        """The fields. `control` is omitted if None, so that runs and stores without a control keep their names."""
        fields = asdict(self)
        return fields if self.control else {name: value for name, value in fields.items() if name != "control"}

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites: each hook of the first layer, then of the next layers."""
        return tuple(Site(layer, hook) for layer in self.layer for hook in self.hook)
