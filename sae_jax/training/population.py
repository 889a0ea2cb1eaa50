"""A population as groups of members. The members of a group have one static signature and are stacked on an axis.

Shapes: P members of a group, N rows for the initialization, D width of the model, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

from harvest.store import ActivationStore
from sae_jax.config import TrainConfig
from sae_jax.members import Member
from sae_jax.models.base import SAE, Arrays, Setting, Start, unit_rows
from sae_jax.models.registry import KINDS
from sae_jax.training.axes import Axes

# Gradient clipping per member, then Adam. The learning rate differs between members, so the step applies it.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.999))

PAPER_DECODER_NORM = 0.1  # Anthropic, April 2024: initial norm of decoder rows that are not kept at norm 1


class Rows(NamedTuple):
    """The rows of a member: the index of their harvested site, and the normalization x = (raw − shift) / scale.

    The loss is ‖(x − x̂) · metric‖². In training, W_dec and b_dec reconstruct x · metric.
    """

    site: int
    shift_D: np.ndarray
    scale_D: np.ndarray
    metric_D: np.ndarray


@dataclass(frozen=True)
class Signature:
    """The settings on which the compiled program of a member depends. All other settings of a member are arrays."""

    activation: str
    sparsity_control: str
    d_model: int
    hidden_dim: int
    k_max: int
    unit_norm_decoder: bool
    dtype: str
    micro_batches: int
    averages: bool
    anchored: bool  # whether decoder rows may turn only so far from their start
    split: bool  # whether a member is split over several devices

    @property
    def kind(self) -> type[SAE]:
        return KINDS[self.activation]

    def graphdef(self) -> nnx.GraphDef:
        one_D = jnp.ones(self.d_model)
        return nnx.split(nnx.eval_shape(lambda: new_sae(self, jax.random.key(0), self.k_max, one_D)))[0]


@dataclass(frozen=True)
class Group:
    signature: Signature
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Population:
    """Members and the rows on which they train. `rows` is by member id; `hypers` has one entry per group.

    `calibration_LxNxD` are the raw held-out rows of each site on which L0 is corrected.
    """

    config: TrainConfig
    stores: Sequence[ActivationStore]  # one store per site, of the same text
    groups: tuple[Group, ...]
    axes: Axes
    side_by_side: int  # members of a group that a device trains at a time
    rows: dict[str, Rows]
    hypers: list[dict]
    calibration_LxNxD: np.ndarray

    def members(self) -> list[Member]:
        return [m for group in self.groups for m in group.members]

    def store_of(self, member: Member) -> ActivationStore:
        return self.stores[self.rows[member.id].site]


class State(struct.PyTreeNode):
    """Everything that training changes in a member. In a group, every array has a leading axis P."""

    params: Arrays
    average: Arrays | None  # moving average of the params over steps, if requested; it is then exported instead
    settings: Arrays
    optimizer: Any
    coefficient: jax.Array  # coefficient of the penalty
    firings_F: jax.Array  # since the last check for dead features
    silent_F: jax.Array  # steps since each feature last fired
    last_dead_check: jax.Array  # step
    last_correction: jax.Array  # step
    step: jax.Array
    # log(L0 on training rows / target) at which held-out rows have the target L0
    log_l0_correction: jax.Array
    failed: jax.Array  # the first step whose loss was not finite, after which nothing changes; otherwise -1
    key: jax.Array

    def to_export(self) -> State:
        """The fields that an export needs: the weights or their average, the settings, and the step of a failure."""
        needed: dict[str, Any] = dict.fromkeys(State.__dataclass_fields__)
        needed["params"] = self.params if self.average is None else self.average
        return State(**needed | {"settings": self.settings, "failed": self.failed})


def groups_of(members: list[Member], config: TrainConfig, d_model: int, split: bool = False) -> tuple[Group, ...]:
    """The members grouped by signature, in order of first appearance. `k_max` is the largest k of a group."""
    alike: dict[tuple, list[Member]] = {}
    for m in members:
        anchored = m.baseline == "soft_frozen"
        alike.setdefault((m.activation, m.sparsity_control, m.hidden_dim, anchored), []).append(m)
    return tuple(
        Group(
            Signature(
                activation,
                sparsity_control,
                d_model,
                hidden_dim,
                k_max=max(m.k or 0 for m in group),
                unit_norm_decoder=config.unit_norm_decoder,
                dtype=config.dtype,
                micro_batches=config.micro_batches,
                averages=config.ema > 0,
                anchored=anchored,
                split=split,
            ),
            tuple(group),
        )
        for (activation, sparsity_control, hidden_dim, anchored), group in alike.items()
    )


ANTHROPIC_ENCODER_SCALE = 0.2  # times the mean norm of living features; the bias is 0 (Anthropic, October 2023)


def hyper_of(member: Member, rows: Rows, config: TrainConfig, total_steps: int) -> Arrays:
    """The numbers of a member as arrays, so that a new value does not compile the program again.

    The last check for dead features is at 60% of the steps, so that revived features have time to learn. Dead features
    of a baseline are not revived, because that would replace what is frozen.
    """
    rate, anthropic = member.dead_rule == "rate", member.dead_rule == "anthropic"
    revives = member.dead_rule != "none" and member.baseline == "trained"
    numbers = {
        "lr": member.lr,
        "encoder_lr": 0.0 if member.baseline == "frozen_encoder" else member.lr,
        "decoder_lr": 0.0 if member.baseline == "frozen_decoder" else member.decoder_lr_ratio * member.lr,
        "target_l0": member.target_l0 or 0.0,
        "sparsity": member.sparsity or 0.0,
        "aux_coefficient": member.aux_coefficient or 0.0,
        "dead_threshold": config.dead_threshold if rate else 0.0,
        "revived_encoder_scale": ANTHROPIC_ENCODER_SCALE if anthropic else 1.0,
        "revived_bias_scale": 0.0 if anthropic else 1.0,
        "dead_steps": steps_to_die(config, total_steps),
        "last_revival_step": 0.6 * total_steps if revives else -1.0,
        "total_steps": total_steps,
        "warmup_steps": max(1.0, member.warmup * total_steps),
        "decay_steps": max(1.0, config.decay * total_steps),
        "batch_size": config.batch_size,
        "ema": config.ema,
    }
    arrays = {name: jnp.float32(value) for name, value in numbers.items()}
    whole = {"site": rows.site, "seed": member.seed, "k": member.k or 0}
    arrays |= {name: jnp.int32(value) for name, value in whole.items()}
    vectors = {name: getattr(rows, name) for name in ("shift_D", "scale_D", "metric_D")}
    return arrays | {name: jnp.asarray(values_D, jnp.float32) for name, values_D in vectors.items()}


def steps_to_die(config: TrainConfig, total_steps: int) -> float:
    """Steps without a firing after which a feature is dead.

    This is a tenth of the run, but at least the rows in which a feature at the threshold fires ten times on average.
    """
    return max(10 / max(config.dead_threshold, 1e-6) / config.batch_size, total_steps / 10)


def new_sae(signature: Signature, key: jax.Array, k: jax.Array | int, metric_D: jax.Array) -> SAE:
    """An SAE with random decoder rows and zero biases. Its encoder projects x · metric_D on the decoder rows."""
    norm = 1.0 if signature.unit_norm_decoder else PAPER_DECODER_NORM
    F, D = signature.hidden_dim, signature.d_model
    W_dec_FxD = norm * unit_rows(jax.random.normal(key, (F, D)))
    params = {"W_encT": W_dec_FxD * metric_D[None], "b_enc": jnp.zeros(F), "W_dec": W_dec_FxD, "b_dec": jnp.zeros(D)}
    settings = {"metric_D": metric_D} | signature.kind.extra_settings()
    settings |= {"start_W_dec": W_dec_FxD} if signature.anchored else {}
    settings |= {"k": jnp.int32(k)} if signature.sparsity_control == "k" else {}
    params |= signature.kind.extra_params(F)
    return signature.kind(
        params, settings, signature.sparsity_control, signature.k_max, signature.dtype, split=signature.split
    )


def encoder_scale(sae: SAE, x_NxD: jax.Array, target_NxD: jax.Array) -> jax.Array:
    """The factor for the encoder with which the features that fire on a row do not add up to more than the row.

    It is fitted by least squares and at most 1, because kinds with an L1 penalty end up better from a start that
    reconstructs too little.
    """
    offset_NxD = sae.decode(sae.activate_training(sae.pre_activations(x_NxD))) - sae.b_dec[None]
    scale = ((target_NxD - sae.b_dec[None]) * offset_NxD).sum() / jnp.square(offset_NxD).sum()
    return jnp.where(scale > 0, jnp.minimum(scale, 1.0), 1.0)


def start_member(signature: Signature, hyper: Arrays, x_NxD: jax.Array) -> State:
    """The initial state of a member: `b_dec` is the mean of the rows, and its kind initializes the rest."""
    key, weights_key = jax.random.split(jax.random.key(hyper["seed"]))
    sae = new_sae(signature, weights_key, hyper["k"], hyper["metric_D"])
    target_NxD = x_NxD * hyper["metric_D"][None]
    sae.b_dec[...] = target_NxD.mean(0)

    def started() -> Start:
        params, settings = (nnx.to_pure_dict(nnx.state(sae, kind)) for kind in (nnx.Param, Setting))
        return sae.start(params, settings, sae.pre_activations(x_NxD), hyper)

    start = started()
    if signature.sparsity_control != "sparsity":  # the papers' coefficients are for the papers' initial weights
        tried = nnx.merge(signature.graphdef(), start.params, start.settings)
        sae.W_encT[...] *= encoder_scale(tried, x_NxD, target_NxD)
        start = started()
    state = State(
        params=start.params,
        average=start.params if signature.averages else None,
        settings=start.settings,
        optimizer=OPTIMIZER.init(start.params),
        coefficient=start.coefficient,
        firings_F=jnp.zeros(signature.hidden_dim, jnp.int32),
        silent_F=jnp.zeros(signature.hidden_dim, jnp.int32),
        last_dead_check=jnp.int32(0),
        last_correction=jnp.int32(0),
        step=jnp.int32(0),
        log_l0_correction=jnp.float32(0),
        failed=jnp.int32(-1),
        key=jax.random.key_data(key),
    )
    return jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), state)  # weak types would compile the block twice


def start_group(group: Group, hyper: Arrays, rows_of: Callable[[Member], jax.Array]) -> State:
    """The initial state of a group, on the host. `rows_of` returns the normalized rows [N, D] of a member.

    The program is compiled once. Each member is copied into the group before the next one is initialized, so that
    no member is held twice.
    """
    begin, members = jax.jit(start_member, static_argnums=0), len(group.members)
    state: Any = None
    for p, member in enumerate(group.members):
        one = begin(group.signature, jax.tree.map(lambda leaf, p=p: leaf[p], hyper), rows_of(member))
        if state is None:
            state = jax.tree.map(lambda leaf: np.empty((members, *leaf.shape), leaf.dtype), one)
        jax.tree.map(lambda stacked, leaf, p=p: stacked.__setitem__(p, leaf), state, one)
    return state


def abstract_group(group: Group, hyper: Arrays) -> State:
    """The shapes and types of the arrays of `start_group`."""
    one_hyper = jax.tree.map(lambda leaf: leaf[0], hyper)
    x_NxD = jax.ShapeDtypeStruct((1, group.signature.d_model), jnp.float32)
    one = jax.eval_shape(lambda hyper, x_NxD: start_member(group.signature, hyper, x_NxD), one_hyper, x_NxD)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(group.members), *leaf.shape), leaf.dtype), one)


def stack(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
