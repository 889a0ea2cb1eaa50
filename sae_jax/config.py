"""What a training run is asked for: the fields are the command line's flags. Imports neither torch nor jax."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from harvest.errors import InputError
from harvest.request import flag

ACTIVATION_NAMES = ("relu", "jump_relu", "topk")


@dataclass(frozen=True)
class Member:
    """The settings of one sparse autoencoder. `sparsity_by` names the one of k, target_l0, sparsity that is set."""

    id: str
    activation: str
    hidden_dim: int
    lr: float
    k: int | None
    target_l0: float | None
    sparsity: float | None
    seed: int

    @property
    def sparsity_by(self) -> str:
        return next(name for name in ("k", "sparsity", "target_l0") if getattr(self, name) is not None)


@dataclass(frozen=True)
class TrainConfig:
    """How to train; raises InputError for values that cannot be."""

    activation: tuple[str, ...] = flag(("relu",), "one or several, trained in one jit", choices=ACTIVATION_NAMES)
    hidden_dim: int = flag(256, "features of a dictionary")
    lr: float = flag(1e-3, "peak learning rate of Adam")
    epochs: int = flag(100, "passes over the training rows")
    batch_size: int = flag(64, "rows a step")
    target_l0: float = flag(32.0, "active features a row that relu and jump_relu are steered to")
    k: int = flag(32, "active features a row of topk")
    sparsity: float | None = flag(
        None, "fixed coefficient of the papers' penalty for relu and jump_relu, in place of --target-l0"
    )
    seed: int = flag(0, "seed of weights, shuffling and resampling")
    normalize_activations: bool = flag(True, "zero mean and unit standard deviation per feature", off="--no-normalize")
    dead_resample: bool = flag(True, "give dead features the directions of badly reconstructed rows")
    dead_threshold: float = flag(1e-3, "a feature that fires on a smaller share of the rows is dead")
    unit_norm_decoder: bool = flag(True, "keep decoder rows at norm 1")
    warmup: float = flag(0.05, "share of the steps over which lr (and a fixed coefficient) rises")
    decay: float = flag(0.2, "share of the steps at the end over which lr falls to zero")
    aux_coefficient: float = flag(1 / 32, "weight of topk's AuxK loss on dead features")
    block_steps: int | None = flag(
        None, "steps a call of the program; dead features are looked at between calls (default: by size)"
    )

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {allowed}")

        for name in self.activation:
            if name not in ACTIVATION_NAMES:
                raise InputError(f"--activation {name}: must be one of {', '.join(ACTIVATION_NAMES)}")
        need(len(self.activation) > 0, "activation", f"at least one of {', '.join(ACTIVATION_NAMES)}")
        need(len(set(self.activation)) == len(self.activation), "activation", "different names")
        for name in ("hidden_dim", "epochs", "batch_size"):
            need(1 <= getattr(self, name) < 2**31, name, "1 or more, and below 2 147 483 648")
        need(isfinite(self.lr) and self.lr > 0, "lr", "a positive number")
        need(
            1 <= self.k <= self.hidden_dim or "topk" not in self.activation,
            "k",
            f"1 to --hidden-dim ({self.hidden_dim})",
        )
        steered = self.sparsity is None and set(self.activation) != {"topk"}
        need(
            0 < self.target_l0 < self.hidden_dim or not steered,
            "target_l0",
            f"over 0, under --hidden-dim ({self.hidden_dim})",
        )
        need(
            self.sparsity is None or (isfinite(self.sparsity) and self.sparsity >= 0),
            "sparsity",
            "0 or a positive number",
        )
        need(0 <= self.seed < 2**31, "seed", "0 to 2147483647")
        need(0 <= self.dead_threshold < 1, "dead_threshold", "0 or more and below 1")
        need(0 <= self.warmup <= 1, "warmup", "a share, 0 to 1")
        need(0 <= self.decay <= 1, "decay", "a share, 0 to 1")
        need(isfinite(self.aux_coefficient) and self.aux_coefficient >= 0, "aux_coefficient", "0 or a positive number")
        need(self.block_steps is None or self.block_steps >= 1, "block_steps", "1 or more")

    def members(self) -> list[Member]:
        """The population: one member an activation function."""
        return [self._member(name) for name in self.activation]

    def _member(self, activation: str) -> Member:
        k = self.k if activation == "topk" else None
        sparsity = self.sparsity if k is None else None
        target_l0 = self.target_l0 if k is None and sparsity is None else None
        level = next(
            f"{name}{value:g}" for name, value in (("k", k), ("s", sparsity), ("l", target_l0)) if value is not None
        )
        member_id = f"{activation}-f{self.hidden_dim}-{level}-lr{short(self.lr)}-s{self.seed}"
        return Member(member_id, activation, self.hidden_dim, self.lr, k, target_l0, sparsity, self.seed)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "activation": list(self.activation)}


def short(x: float) -> str:
    """3e-4 rather than 0.0003."""
    mantissa, exponent = f"{x:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
