"""The configuration of a training run. Its fields are flags on the command line. Imports neither torch nor jax."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from harvest.errors import InputError, shortened
from harvest.files import refuse_irregular
from harvest.flags import BELOW_1, COUNT, NOT_NEGATIVE, NUMBER, POSITIVE, SHARE, Flags, check, flag

SPARSITY_CONTROLS = {  # settings that can fix the sparsity of a kind, the default first
    "relu": ("target_l0", "sparsity"),
    "tanh_relu": ("target_l0", "sparsity"),
    "p_anneal": ("target_l0", "sparsity"),
    "jump_relu": ("target_l0", "sparsity"),
    "gated": ("target_l0", "sparsity"),
    "topk": ("k",),
    "multi_topk": ("k",),
    "abs_topk": ("k",),
    "batch_topk": ("k",),
    "matryoshka": ("k",),
}
FLAGS_OF_SOME_KINDS = ("k", "aux_coefficient", "target_l0", "sparsity")  # the other flags have an effect on every kind
NORMALIZATIONS = ("standardize", "mean_norm", "mean_square", "none")
METRIC_POWERS = {"raw": 0.0, "sqrt_std": 0.5, "standardized": 1.0}  # errors are divided by std to this power
BASELINES = ("frozen_decoder", "soft_frozen", "frozen_encoder")  # of Korznikov et al. 2026, arXiv 2602.14111
DTYPES = ("float32", "bfloat16")
DEAD_RULES = ("rate", "anthropic", "none")


@dataclass(frozen=True)
class TrainConfig(Flags):
    """Settings of a training run. Tuples span the population. Raises InputError for invalid values."""

    activation: tuple[str, ...] = flag(
        ("relu",), "kinds of SAE; several kinds are trained in one program", choices=tuple(SPARSITY_CONTROLS)
    )
    hidden_dim: tuple[int, ...] = flag((256,), "features per SAE", COUNT)
    lr: tuple[float, ...] = flag((1e-3,), "peak learning rate of Adam", POSITIVE)
    target_l0: tuple[float, ...] = flag(
        (32.0,), "target for the mean number of active features per row, for the kinds with a penalty", POSITIVE
    )
    sparsity: tuple[float, ...] = flag(
        (), "fixed penalty coefficient as in the papers, instead of --target-l0", NOT_NEGATIVE
    )
    k: tuple[int, ...] = flag((32,), "active features per row, for the topk kinds", COUNT)
    seed: tuple[int, ...] = flag((0,), "seed of the initial weights and of the revival of dead features", NUMBER)
    warmup: tuple[float, ...] = flag(
        (0.05,),
        "share of the steps at the start in which the learning rate (and the --sparsity coefficient) rises from zero",
        SHARE,
    )
    normalization: tuple[str, ...] = flag(
        ("standardize",),
        "scaling of rows: standardize (mean 0 and deviation 1 per dimension), mean_norm (mean norm sqrt(d)), "
        "mean_square (mean squared norm 1), none",
        choices=NORMALIZATIONS,
        shorthands={"--normalize-activations": "standardize", "--no-normalize": "none"},
    )
    loss_metric: tuple[str, ...] = flag(
        ("raw",),
        "units of the squared error in the loss: raw (those of the model), sqrt_std (each dimension is divided by the "
        "root of its standard deviation), standardized (by its standard deviation)",
        choices=tuple(METRIC_POWERS),
    )
    dead_rule: tuple[str, ...] = flag(
        ("rate",),
        "which features to revive: rate (fire below --dead-threshold), anthropic (silent since the last check), none",
        choices=DEAD_RULES,
        shorthands={"--dead-resample": "rate", "--no-dead-resample": "none"},
    )
    aux_coefficient: tuple[float, ...] = flag(
        (1 / 32,), "weight of the AuxK loss of dead features, for the topk kinds", NOT_NEGATIVE
    )
    baseline: tuple[str, ...] = flag(
        ("trained",),
        "twins to train beside each member, to compare with: frozen_decoder (its random decoder stays), soft_frozen "
        "(no decoder row turns far from its start), frozen_encoder (its random encoder stays)",
        choices=("trained", *BASELINES),
    )
    decoder_lr_ratio: tuple[float, ...] = flag((3.0,), "learning rate of the decoder, in multiples of --lr", POSITIVE)
    members: Path | None = flag(None, ".json file with a list of members, instead of all combinations of the flags")
    epochs: int = flag(100, "passes over the training rows", COUNT)
    batch_size: int = flag(64, "rows per step", COUNT)
    data_seed: int = flag(0, "seed of the order of rows, which is the same for all members", NUMBER)
    dead_threshold: float = flag(
        1e-3, "with --dead-rule rate: features that fire on a smaller share of rows are revived", BELOW_1
    )
    unit_norm_decoder: bool = flag(True, "keep decoder rows at norm 1")
    fit_decoder: bool = flag(True, "after training, fit the decoder to the features of training rows by least squares")
    decay: float = flag(0.2, "share of the steps at the end in which the learning rate falls to zero", SHARE)
    ema: float = flag(
        0.0, "decay of a moving average of the weights; the average is exported (0: export the weights)", BELOW_1
    )
    dtype: str = flag(
        "float32",
        "number format of the operands of large matrix products; sums and weights stay float32",
        choices=DTYPES,
    )
    micro_batches: int = flag(
        1, "split each batch into this many parts to save memory; batch_topk then ranks within each part", COUNT
    )
    block_steps: int | None = flag(
        None,
        "steps per call of the compiled program; dead features are revived between calls (default: chosen by the "
        "size of the run)",
        COUNT,
    )

    entries: ClassVar[list[dict[str, Any]] | None]  # entries of the members' file, read once

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members is not None:
            object.__setattr__(self, "members", Path(self.members))
        object.__setattr__(self, "entries", read_members(self.members) if self.members else None)
        if self.batch_size % self.micro_batches:
            raise InputError(f"--micro-batches {self.micro_batches}: must divide --batch-size ({self.batch_size})")

    def steps(self, rows: int, stream: bool = False) -> int:
        """The steps of a training on so many rows. Each epoch leaves a rest, a stream only at its end."""
        return self.epochs * rows // self.batch_size if stream else self.epochs * (rows // self.batch_size)

    def to_json(self) -> dict[str, Any]:
        """The fields, with the content of the members' file instead of its path."""
        return asdict(self) | {"members": self.entries}


def flags_of_kind(kind: str) -> set[str]:
    """Those of FLAGS_OF_SOME_KINDS that have an effect on this kind."""
    controls = set(SPARSITY_CONTROLS[kind])
    return controls | {"aux_coefficient"} if "k" in controls else controls


AXES = tuple(field.name for field in fields(TrainConfig) if isinstance(field.default, tuple))
FLAGS = {field.name: field for field in fields(TrainConfig)}


def read_members(path: Path) -> list[dict[str, Any]]:
    """The entries of a members' file: objects with names of flags. Null values are dropped.

    Raises InputError if the file is not such a list or names an unknown flag.
    """
    refuse_irregular(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=of_different_names)
    except OSError as e:
        raise InputError(f"--members {path}: {e.strerror}: give a .json file that can be read") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"--members {path}: cannot be read as JSON ({e}): correct it") from e
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise InputError(f'--members {path}: must hold a list like [{{"activation": "topk", "k": 16}}]')
    for entry in entries:
        for name, value in entry.items():
            if name not in (*AXES, "layer", "hook"):
                raise InputError(
                    f"--members {path}: {shortened(name)!r} must be one of {', '.join((*AXES, 'layer', 'hook'))}"
                )
            if value is None:
                continue
            if name in AXES:
                check(FLAGS[name], value, f"--members {path}: {name}")
            elif type(value) is not (int if name == "layer" else str):
                raise InputError(f"--members {path}: {name} {shortened(value)}: must be one of the harvested {name}s")
    entries = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
    for entry in entries:
        kind = entry.get("activation")
        if kind and (idle := (entry.keys() & FLAGS_OF_SOME_KINDS) - flags_of_kind(kind)):
            raise InputError(f"--members {path}: {min(idle)} has no effect on {kind}: remove it")
        if {"sparsity", "target_l0"} <= set(entry):
            raise InputError(f"--members {path}: {shortened(entry)}: give sparsity or target_l0, not both")
    return entries


def of_different_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs. Raises ValueError for a name that is there twice, since one value would be lost."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{shortened(twice[0])!r} is in one object twice")
    return dict(pairs)
