"""One member's step, scanned over a block of batches, lifted over the members of a group, jitted for all groups.

Shapes: P members of a group, S steps of a block, B rows of a batch, D width of the model, F features.
The order (scan inside, members outside) keeps one member's weights in the cache for a whole block where members run
one after another, and is one vmap of the scan where they run side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.dead import resample
from sae_jax.losses import member_loss
from sae_jax.population import OPTIMIZER, Group, Signature, State
from sae_jax.recipes import RECIPES, Arrays
from sae_jax.sparse import CHUNK, DENSEST, Candidates, fits, largest, most_candidates

Normalization = tuple[jax.Array, jax.Array]  # shift_D, scale_D: x = (raw − shift) / scale

POOL_ROWS = 1024  # of a block's last rows, from which dead features are revived


def schedule(step: jax.Array, hyper: Arrays) -> jax.Array:
    """Linear warm-up, flat, linear decay to zero: the factor of lr and of every steering at this step."""
    rise = (step + 1) / hyper["warmup_steps"]
    fall = (hyper["total_steps"] - step) / hyper["decay_steps"]
    return jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)


def make_gradients(signature: Signature, in_turn: bool) -> Callable:
    """(state, x_BxD, hyper) → ((loss, terms), gradients) of one member.

    Where members train in turn, each step decides what it need not compute: what does not fire, and AuxK where nothing
    is dead. The result is the same.
    """
    recipe, graphdef = RECIPES[signature.activation, signature.sparsity_by], signature.graphdef()
    F, k_max = signature.hidden_dim, signature.k_max
    sparse = in_turn and sparse_pays(signature)

    def gradients(state: State, x_BxD: jax.Array, hyper: Arrays):
        dead_F = state.silent_F >= hyper["dead_steps"]

        def along(known_BxF: jax.Array | None, at: Candidates | None, aux_coefficient: jax.Array | None = None):
            def loss(params: Arrays):
                sae = nnx.merge(graphdef, params, state.settings)
                return member_loss(sae, recipe, x_BxD, state.coefficient, dead_F, aux_coefficient, known_BxF, at)

            return jax.value_and_grad(loss, has_aux=True)(state.params)

        known_BxF = at = None
        if sparse:
            sae = nnx.merge(graphdef, state.params, state.settings)
            known_BxF = x_BxD @ sae.W_encT.T
            z_BxF = sae.pre_activations(x_BxD, known_BxF)
        if k_max is not None:
            if sparse:
                at = largest(z_BxF, jnp.full(len(x_BxD), sae.k[...]), k_max)
            with_auxk = functools.partial(along, known_BxF, at, hyper["aux_coefficient"])
            without = functools.partial(along, known_BxF, at)
            return jax.lax.cond(dead_F.any(), with_auxk, without) if in_turn else with_auxk()
        if not sparse:
            return along(None, None)
        score_BxF = jnp.where(sae.may_matter(z_BxF), z_BxF, -jnp.inf)
        count_B = jnp.isfinite(score_BxF).sum(1, dtype=jnp.float32).astype(jnp.int32)
        return jax.lax.cond(
            fits(count_B, F),
            lambda: along(known_BxF, largest(score_BxF, count_B, most_candidates(F))),
            lambda: along(known_BxF, None),
        )

    return gradients


def make_step(signature: Signature, in_turn: bool = True) -> Callable:
    """(hyper, normalization, state, raw_BxD) → (state, metrics) of one member."""
    gradients = make_gradients(signature, in_turn)
    recipe = RECIPES[signature.activation, signature.sparsity_by]

    def step(hyper: Arrays, normalization: Normalization, state: State, raw_BxD: jax.Array):
        shift_D, scale_D = normalization
        x_BxD = (raw_BxD.astype(jnp.float32) - shift_D) / scale_D
        (loss, terms), grads = gradients(state, x_BxD, hyper)
        s = schedule(state.step, hyper)
        l0 = terms.firings_F.sum() / len(x_BxD)

        if signature.unit_norm_decoder:
            W_dec = state.params["W_dec"]
            grads["W_dec"] -= (grads["W_dec"] * W_dec).sum(1, keepdims=True) * W_dec
        updates, optimizer = OPTIMIZER.update(grads, state.optimizer)
        params = jax.tree.map(lambda p, u: p - hyper["lr"] * s * u, state.params, updates)
        if signature.unit_norm_decoder:
            params["W_dec"] /= jnp.linalg.norm(params["W_dec"], axis=1, keepdims=True)
        params, coefficient = recipe.adjust(
            params, state.settings, state.coefficient, l0, s, {**hyper, "step": state.step}
        )
        state = state.replace(
            params=params,
            optimizer=optimizer,
            coefficient=coefficient,
            firings_F=state.firings_F + terms.firings_F,
            silent_F=jnp.where(terms.firings_F > 0, 0, state.silent_F + 1),
            step=state.step + 1,
        )
        mse = jnp.square(terms.error_BxD * scale_D).sum(-1).mean()
        return state, {"loss": loss, "mse": mse, "l0": l0}

    return step


def look_for_dead(signature: Signature, hyper: Arrays, normalization: Normalization, state: State, raw_NxD) -> State:
    """After a block: where it is time, revive what fired on too small a share of the rows since the last look."""
    steps = (state.step - state.looked).astype(jnp.float32)
    due = (steps >= hyper["dead_steps"]) & (state.step <= hyper["last_look"])
    dead_F = state.firings_F < hyper["dead_threshold"] * steps * hyper["batch_size"]

    def revive(state: State) -> State:
        shift_D, scale_D = normalization
        key, draw = jax.random.split(jax.random.wrap_key_data(state.key))
        sae = nnx.merge(signature.graphdef(), state.params, state.settings)
        clip, adam = state.optimizer
        params, (mu, nu) = resample(
            sae, (adam.mu, adam.nu), (raw_NxD.astype(jnp.float32) - shift_D) / scale_D, dead_F, draw
        )
        optimizer = (clip, adam._replace(mu=mu, nu=nu))
        return state.replace(params=params, optimizer=optimizer, key=jax.random.key_data(key))

    state = jax.lax.cond(due & dead_F.any(), revive, lambda state: state, state)
    return state.replace(firings_F=jnp.where(due, 0, state.firings_F), looked=jnp.where(due, state.step, state.looked))


def sparse_pays(signature: Signature) -> bool:
    """Whether a group is worth the second path in its program, and its width is a whole number of chunks."""
    widest = signature.k_max or CHUNK
    return signature.hidden_dim % CHUNK == 0 and widest <= DENSEST * signature.hidden_dim


def make_block(signature: Signature, in_turn: bool) -> Callable:
    """(hyper, normalization, state, raw_SxBxD) → (state, metrics of each step and the dead share) of one member."""
    step = make_step(signature, in_turn)

    def block(hyper: Arrays, normalization: Normalization, state: State, raw_SxBxD: jax.Array):
        state, metrics = jax.lax.scan(lambda s, x: step(hyper, normalization, s, x), state, raw_SxBxD)
        metrics["dead_fraction"] = (state.silent_F >= jnp.minimum(hyper["dead_steps"], state.step)).mean()
        if signature.dead_resample:
            raw_NxD = raw_SxBxD.reshape(-1, raw_SxBxD.shape[-1])[-POOL_ROWS:]
            state = look_for_dead(signature, hyper, normalization, state, raw_NxD)
        return state, metrics

    return block


def make_train_block(groups: tuple[Group, ...], side_by_side: int = 1) -> Callable:
    """(states, hypers, normalization, raw_SxBxD) → (states, metrics), one entry a group; jitted, states donated.

    `side_by_side` members of a group run in one vmap, the next ones after them. One at a time is a plain loop: a vmap,
    even of one, would turn every `cond` into computing both sides.
    """
    batch_size = side_by_side if side_by_side > 1 else None
    blocks = [make_block(group.signature, in_turn=side_by_side == 1) for group in groups]

    def train_block(states: list[State], hypers: list[Arrays], normalization: Normalization, raw_SxBxD: jax.Array):
        results = [
            jax.lax.map(
                lambda member, block=block: block(member[1], normalization, member[0], raw_SxBxD),
                (state, hyper),
                batch_size=batch_size,
            )
            for block, state, hyper in zip(blocks, states, hypers, strict=True)
        ]
        return [state for state, _ in results], [metrics for _, metrics in results]

    return jax.jit(train_block, donate_argnums=0)
