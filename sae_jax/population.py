"""Members of one static signature form a group, stacked on a leading axis; the groups are the population.

Shapes: P members of a group, N rows to start from, D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from sae_jax.config import Member, TrainConfig
from sae_jax.recipes import RECIPES, Arrays
from sae_jax.sae import SAE, Setting, unit_rows

# Gradient clipping per member, then Adam; the learning rate is each member's own and is applied by the step.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.999))

PAPER_DECODER_NORM = 0.1  # Anthropic, April 2024: decoder rows start at this norm where they are not kept at 1
PAPER_THRESHOLD, PAPER_BANDWIDTH = 0.01, 0.05  # SAELens' jumprelu, for rows of norm √D


@dataclass(frozen=True)
class Signature:
    """What the compiled program of a member depends on. Everything else about a member is an array."""

    activation: str
    sparsity_by: str
    d_model: int
    hidden_dim: int
    k_max: int | None
    unit_norm_decoder: bool
    dead_resample: bool

    def graphdef(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: new_sae(self, jax.random.key(0), self.k_max)))[0]


@dataclass(frozen=True)
class Group:
    signature: Signature
    members: tuple[Member, ...]


class State(struct.PyTreeNode):
    """Everything that training changes in a member (in a group: with a leading P)."""

    params: Arrays
    settings: Arrays
    optimizer: Any
    coefficient: jax.Array  # of the penalty
    firings_F: jax.Array  # since the dead features were last looked at
    silent_F: jax.Array  # steps since a feature fired
    looked: jax.Array  # step of the last look at dead features
    step: jax.Array
    key: jax.Array


def groups_of(config: TrainConfig, d_model: int) -> tuple[Group, ...]:
    """The population of a run, grouped, in the order of first appearance."""
    by_signature: dict[Signature, list[Member]] = {}
    for m in config.members():
        signature = Signature(
            m.activation, m.sparsity_by, d_model, m.hidden_dim, m.k, config.unit_norm_decoder, config.dead_resample
        )
        by_signature.setdefault(signature, []).append(m)
    return tuple(Group(signature, tuple(members)) for signature, members in by_signature.items())


def hyper_of(member: Member, config: TrainConfig, total_steps: int) -> Arrays:
    """A member's numbers as arrays: a new value never compiles again.

    Dead features are looked at for the last time at 60% of the steps, so that what is revived has time to learn.
    """
    numbers = {
        "lr": member.lr,
        "target_l0": member.target_l0 or 0.0,
        "sparsity": member.sparsity or 0.0,
        "aux_coefficient": config.aux_coefficient,
        "dead_threshold": config.dead_threshold,
        "dead_steps": steps_to_die(config, total_steps),
        "last_look": 0.6 * total_steps,
        "total_steps": total_steps,
        "warmup_steps": max(1.0, config.warmup * total_steps),
        "decay_steps": max(1.0, config.decay * total_steps),
        "batch_size": config.batch_size,
    }
    return {name: jnp.float32(value) for name, value in numbers.items()}


def steps_to_die(config: TrainConfig, total_steps: int) -> float:
    """A tenth of the run, but not fewer rows than a feature at the threshold needs to fire ten times."""
    return max(10 / max(config.dead_threshold, 1e-6) / config.batch_size, total_steps / 10)


def new_sae(signature: Signature, key: jax.Array, k: int | None) -> SAE:
    """Random decoder rows, the encoder their transpose, biases zero."""
    norm = 1.0 if signature.unit_norm_decoder else PAPER_DECODER_NORM
    W_dec_FxD = norm * unit_rows(jax.random.normal(key, (signature.hidden_dim, signature.d_model)))
    return SAE(
        signature.activation,
        W_dec_FxD,
        jnp.zeros(signature.hidden_dim),
        W_dec_FxD,
        jnp.zeros(signature.d_model),
        threshold=jnp.full(signature.hidden_dim, PAPER_THRESHOLD),
        bandwidth=PAPER_BANDWIDTH,
        k=k,
        k_max=signature.k_max,
    )


def start_member(signature: Signature, member: Member, hyper: Arrays, x_NxD: jax.Array) -> State:
    """A member before its first step: `b_dec` is the mean of the rows x, the rest its recipe's start."""
    key, weights_key = jax.random.split(jax.random.key(member.seed))
    sae = new_sae(signature, weights_key, member.k)
    sae.b_dec[...] = x_NxD.mean(0)
    params, settings = (nnx.to_pure_dict(nnx.state(sae, kind)) for kind in (nnx.Param, Setting))
    start = RECIPES[signature.activation, signature.sparsity_by].start(
        params, settings, sae.pre_activations(x_NxD), hyper
    )
    state = State(
        params=start.params,
        settings=start.settings,
        optimizer=OPTIMIZER.init(start.params),
        coefficient=start.coefficient,
        firings_F=jnp.zeros(signature.hidden_dim, jnp.int32),
        silent_F=jnp.zeros(signature.hidden_dim, jnp.int32),
        looked=jnp.int32(0),
        step=jnp.int32(0),
        key=jax.random.key_data(key),
    )
    return jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), state)  # weak types would compile the block twice


def stack(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
