"""Fields of dataclasses that are flags on the command line, and the values that they may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, NamedTuple

import numpy as np

from harvest.errors import InputError, shortened

ELSEWHERE = {  # settings by their names in SAELens and dictionary_learning
    "architecture": "activation",
    "cached_activations_path": "rows",
    "checkpoint_path": "run_dir",
    "coefficient": "strength",
    "context_size": "seq_len",
    "ctx_len": "seq_len",
    "d_sae": "hidden_dim",
    "dataset_path": "dataset",
    "dead_feature_window": "dead_rule",
    "dict_size": "hidden_dim",
    "expansion_factor": "hidden_dim",
    "hook_head_index": "head",
    "hook_layer": "layer",
    "hook_point": "hook_name",
    "hook_point_layer": "layer",
    "l0": "target_l0",
    "l0_coefficient": "sparsity",
    "l1_coefficient": "sparsity",
    "l1_penalty": "sparsity",
    "learning_rate": "lr",
    "log_to_wandb": "use_wandb",
    "lr_decay_steps": "decay",
    "lr_warm_up_steps": "warmup",
    "n_eval_batches": "ce_windows",
    "n_latents": "hidden_dim",
    "name": "run_dir",
    "output_dir": "run_dir",
    "output_path": "run_dir",
    "overwrite": "force",
    "prepend_bos": "bos",
    "resume_from_checkpoint": "resume",
    "run_name": "run_dir",
    "save_dir": "run_dir",
    "steps": "epochs",
    "steering_coefficient": "strength",
    "train_batch_size_tokens": "batch_size",
    "training_tokens": "tokens",
    "use_cached_activations": "rows",
    "width": "hidden_dim",
}
OTHER_UNITS = {"expansion_factor": "features"}  # those of our flags
KINDS_ELSEWHERE = {"standard": "relu", "matryoshka_batchtopk": "matryoshka"}  # those that are spelled very differently
WITH_VALUES = {  # flags with their values as in SAELens, and ours for both
    r"--hook (blocks\.\d+\..*)": r"--hook-name \1",
    r"--normalize-activations expected_average_only_in": "--normalization mean_norm",
    r"--normalize-activations none": "--normalization none",
}


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


@dataclass(frozen=True)
class Flags:
    """The base class of dataclasses of flags. Converts their fields to plain values and tuples, and checks them.

    Raises InputError for a value that is not allowed.
    """

    def __post_init__(self) -> None:
        for part in fields(self):
            value = plain(getattr(self, part.name))
            if isinstance(value, PathLike) and part.metadata["allowed"]:  # where a text is needed
                value = fspath(value)
            if isinstance(part.default, tuple):
                value = several(part.name, value)
            for one in value if isinstance(value, tuple) else (value,):
                check(part, one)
            if isinstance(part.default, tuple) and (len(set(value)) < len(value) or not value and part.default):
                given = shortened(" ".join(map(str, value)))
                raise InputError(f"{named(part.name)} {given}: give at least one value, and none twice")
            object.__setattr__(self, part.name, value)


def check(part: Field, value: Any, what: str = "") -> None:
    """Raise InputError, naming the flag or `what`, unless the value is allowed. None is, if it is the default."""
    allowed = part.metadata["allowed"]
    if isinstance(part.default, bool) and not isinstance(value, bool):
        raise InputError(f"{what or named(part.name)} {shortened(repr(value))}: must be True or False")
    if allowed is None or value is None and part.default is None:
        return
    if allowed.kind is Real and isinstance(value, Real) and not in_float32(value):
        words = "0 or have an absolute value from 1.2e-38 to 3.4e38, the range of float32"
        raise InputError(f"{what or named(part.name)} {shortened(value)}: must be {words}")
    if not isinstance(value, allowed.kind) or isinstance(value, bool) or not allowed.fits(value):
        ours = translated(named(part.name), value)
        hint = f": did you mean {ours}?" if ours else nearest(str(value), part.metadata.get("choices", ()))
        given = repr(value) if isinstance(value, str) and allowed.kind is not str else value  # '32' is no number
        raise InputError(f"{what or named(part.name)} {shortened(given)}: must be {allowed.words}{hint}")


def nearest(word: str, known: Iterable[str]) -> str:
    """A question for a word that is not known: ": did you mean show?", or nothing if no known word is near."""
    asked, known = word.removeprefix("--").replace("-", "_"), list(known)
    name = (ELSEWHERE | KINDS_ELSEWHERE).get(asked, "")
    meant = named(name) if word.startswith("--") else name
    if meant in known:
        return f": did you mean {meant}{f' (a number of {OTHER_UNITS[asked]})' if asked in OTHER_UNITS else ''}?"
    found = get_close_matches(word, known, n=1, cutoff=0.7)
    return f": did you mean {found[0]}?" if found else ""


def translated(name: str, value: Any) -> str:
    """Our flags for a flag and its value as in SAELens; "" if they are not in WITH_VALUES."""
    found = ((re.fullmatch(said, f"{name.replace('_', '-')} {value}"), ours) for said, ours in WITH_VALUES.items())
    return next((match.expand(ours) for match, ours in found if match), "")


def named(name: str) -> str:
    return "--" + name.replace("_", "-")


@contextmanager
def as_arguments() -> Iterator[None]:
    """A context, or a decorator of functions for Python, in which the messages of errors name arguments, not flags.

    Commands in backticks keep their flags.
    """
    try:
        yield
    except InputError as error:
        parts = re.split("(`[^`]*`)", str(error))
        parts[::2] = [
            re.sub(r"--([a-z][a-z0-9-]*)", lambda flag: flag[1].replace("-", "_"), part) for part in parts[::2]
        ]
        error.args = ("".join(parts),)
        raise


def plain(value: Any) -> Any:
    """A scalar of numpy, JAX or torch as a Python number. Other values are returned as given.

    A float32 or float16 becomes the shortest decimal that rounds to it: float32(1e-5) is 1e-5, not
    9.999999747378752e-06.
    """
    if getattr(value, "ndim", None) != 0:
        return value
    narrow = {"float32": np.float32, "float16": np.float16}.get(str(value.dtype).removeprefix("torch."))
    return float(str(narrow(value.item()))) if narrow else value.item()


def several(name: str, value: Any) -> tuple[Any, ...]:
    """The values of a flag that takes several, from a list, an array, a range or a single value.

    Raises InputError for a set or a dict, because the order of members would depend on theirs.
    """
    value = plain(value)
    if isinstance(value, Set | Mapping):
        raise InputError(f"{named(name)} {shortened(value)}: has no order of its own: give a list or a tuple")
    return tuple(map(plain, value)) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)


SINGLE_LEAST, SINGLE_MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # range of normal float32 numbers


def in_float32(value: Any) -> bool:
    """Whether a number neither underflows nor overflows in float32."""
    return value == 0 or SINGLE_LEAST <= abs(value) <= SINGLE_MOST


TEXT = Allowed(str, lambda v: bool(v.strip()), "a text that is not empty")
NUMBER = Allowed(Integral, lambda v: 0 <= v < 2**31, "a whole number, 0 to 2147483647")
COUNT = Allowed(Integral, lambda v: 1 <= v < 2**31, "a whole number, 1 or more, and below 2147483648")
DEVICE = Allowed(
    str,
    lambda v: bool(re.fullmatch(r"auto|spread|cpu|cuda(:\d+)?", v)),
    "auto, cpu, cuda, the like of cuda:1, or spread",
)
WHERE = (
    "where the language model runs: cpu, cuda, cuda:N, auto (cuda if torch finds it, otherwise cpu), or spread: over "
    "all GPUs or, without one, over the memory and the disk, for a model that is too large for one"
)
REAL = Allowed(Real, lambda v: True, "a number")
POSITIVE = Allowed(Real, lambda v: v > 0, "a positive number")
NOT_NEGATIVE = Allowed(Real, lambda v: v >= 0, "0 or a positive number")
SHARE = Allowed(Real, lambda v: 0 <= v <= 1, "a share, 0 to 1")
ABOVE_0 = Allowed(Real, lambda v: 0 < v <= 1, "a share over 0 and at most 1")
BELOW_1 = Allowed(Real, lambda v: 0 <= v <= 1 - 2**-24, "0 or more and below 1, in float32, too")
