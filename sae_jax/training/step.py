"""The training step of one member, repeated over a block of batches.

Shapes: L sites, S steps of a block, B rows of a batch, N calibration rows or recent rows, D width of the model, F
features. The loop over steps is inside the map over members. If members run one after another, the
weights of one member thus stay in the cache for a whole block. If they run side by side, the map is a vmap of the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.models.base import Arrays, Batch, Measured, unit_rows
from sae_jax.ops.sparse import CHUNK, DENSEST, Candidates, largest, most_candidates
from sae_jax.training.loss import member_loss
from sae_jax.training.population import OPTIMIZER, Signature, State
from sae_jax.training.resampling import resample

LARGEST_CORRECTION = 0.1  # largest change of log L0 in one correction
SOFT_FROZEN = 0.8  # smallest cosine of a decoder row of a soft_frozen baseline with its start (arXiv 2602.14111)
POOL_ROWS = 1024  # the last rows of a block, from which dead features are revived


def schedule(step: jax.Array, hyper: Arrays) -> jax.Array:
    """Factor of the learning rate and of the sparsity control: linear warm-up, flat, linear decay to zero."""
    rise = (step + 1) / hyper["warmup_steps"]
    fall = (hyper["total_steps"] - step) / hyper["decay_steps"]
    return jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)


def normalized(raw: jax.Array, hyper: Arrays) -> jax.Array:
    return (raw.astype(jnp.float32) - hyper["shift_D"][None]) / hyper["scale_D"][None]


def sparse_pays(signature: Signature) -> bool:
    """Return whether the sparse path is compiled for a group: if it is faster and the width is a multiple of CHUNK.

    A member that is split over devices has only the dense path, which XLA can divide.
    """
    candidates = signature.kind.ranks_per_k * signature.k_max or CHUNK
    wide = signature.hidden_dim % CHUNK == 0 and candidates <= DENSEST * signature.hidden_dim
    return signature.kind.has_sparse_path and wide and not signature.split


def make_gradients(signature: Signature, in_turn: bool) -> Callable:
    """(state, x_BxD, hyper) → ((loss, terms), gradients) of one member.

    If members train in turn, each step skips features that do not fire, and AuxK if no feature is dead. The result is
    the same.
    """
    kind, graphdef, F = signature.kind, signature.graphdef(), signature.hidden_dim

    def gradients(state: State, x_BxD: jax.Array, hyper: Arrays):
        dead_F = state.silent_F >= hyper["dead_steps"]

        def along(known_BxF: jax.Array | None, at: Candidates | None, revive: bool):
            batch = Batch(
                x_BxD,
                x_BxD * hyper["metric_D"][None],
                known_BxF,
                at,
                dead_F,
                revive,
                state.step / hyper["total_steps"],
                hyper,
            )

            def loss(params: Arrays):
                return member_loss(nnx.merge(graphdef, params, state.settings), state.coefficient, batch)

            return jax.value_and_grad(loss, has_aux=True)(state.params)

        def reviving_if_dead(known_BxF: jax.Array | None, at: Candidates | None):
            if not kind.has_auxk:
                return along(known_BxF, at, revive=False)
            branches = [functools.partial(along, known_BxF, at, revive) for revive in (True, False)]
            return jax.lax.cond(dead_F.any(), *branches)

        if not in_turn:
            return along(None, None, revive=kind.has_auxk)
        if not sparse_pays(signature) or jax.default_backend() != "cpu":  # its loops over rows are slow elsewhere
            return reviving_if_dead(None, None)
        sae = nnx.merge(graphdef, state.params, state.settings)
        known_BxF = sae.encoder_product(x_BxD)
        score_BxF = sae.score(sae.pre_activations(x_BxD, known_BxF))
        if kind.by_rank:
            count_B = jnp.full(len(x_BxD), kind.ranks_per_k * sae.k)
            return reviving_if_dead(known_BxF, largest(score_BxF, count_B, kind.ranks_per_k * signature.k_max))
        count_B = jnp.isfinite(score_BxF).sum(1, dtype=jnp.float32).astype(jnp.int32)
        return jax.lax.cond(
            sae.fits(count_B, F),
            lambda: reviving_if_dead(known_BxF, largest(score_BxF, count_B, most_candidates(F))),
            lambda: reviving_if_dead(known_BxF, None),
        )

    return in_parts(gradients, signature.micro_batches)


def in_parts(gradients: Callable, parts: int) -> Callable:
    """The gradients of a batch computed in parts: loss and gradients are means over the parts, firings are summed."""
    if parts == 1:
        return gradients

    def summed(state: State, x_BxD: jax.Array, hyper: Arrays):
        def add(total, x_BxD):
            return jax.tree.map(jnp.add, total, gradients(state, x_BxD, hyper)), None

        x_MxBxD = x_BxD.reshape(parts, -1, x_BxD.shape[1])
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradients, state, x_MxBxD[0], hyper)
        )
        total, _ = jax.lax.scan(add, zeros, x_MxBxD)
        (loss, terms), grads = jax.tree.map(lambda leaf: leaf / parts, total)
        return (loss, terms._replace(firings_F=total[0][1].firings_F)), grads

    return summed


def make_step(signature: Signature, in_turn: bool = True) -> Callable:
    """(hyper, state, raw_BxD) → (state, metrics) of one member.

    A member whose loss (or error in raw units) is not finite keeps the state before that step for the rest of the run.
    """
    gradients, graphdef = make_gradients(signature, in_turn), signature.graphdef()

    def step(hyper: Arrays, state: State, raw_BxD: jax.Array):
        (loss, terms), grads = gradients(state, normalized(raw_BxD, hyper), hyper)
        s = schedule(state.step, hyper)
        l0 = terms.firings_F.sum() / len(raw_BxD)

        def learn(grads: Arrays) -> State:
            if signature.unit_norm_decoder:
                W_dec = state.params["W_dec"]
                grads["W_dec"] -= (grads["W_dec"] * W_dec).sum(1, keepdims=True) * W_dec
            updates, optimizer = OPTIMIZER.update(grads, state.optimizer)
            lr = {"W_encT": hyper["encoder_lr"], "W_dec": hyper["decoder_lr"]}
            params = {name: p - lr.get(name, hyper["lr"]) * s * updates[name] for name, p in state.params.items()}
            if signature.unit_norm_decoder:
                params["W_dec"] /= jnp.linalg.norm(params["W_dec"], axis=1, keepdims=True)
            if signature.anchored:
                params["W_dec"] = near(params["W_dec"], state.settings["start_W_dec"])
            excess = jnp.clip(jnp.log(jnp.maximum(l0, 1e-6) / hyper["target_l0"]) - state.log_l0_correction, -1.0, 1.0)
            measured = Measured(state.step, s, excess, terms.statistics)
            sae = nnx.merge(graphdef, params, state.settings)
            params, settings, coefficient = sae.update_controller(
                params, state.settings, state.coefficient, measured, hyper
            )
            average = state.average
            if average is not None:  # a plain mean over the first steps, so that the initial weights do not linger
                rate = jnp.maximum(1 - hyper["ema"], 1 / (state.step + 1))
                average = jax.tree.map(lambda a, p: a + rate * (p - a), average, params)
            return state.replace(
                params=params,
                average=average,
                settings=settings,
                optimizer=optimizer,
                coefficient=coefficient,
                firings_F=state.firings_F + terms.firings_F,
                silent_F=jnp.where(terms.firings_F > 0, 0, state.silent_F + 1),
                step=state.step + 1,
            )

        def freeze(grads: Arrays) -> State:
            return state.replace(failed=jnp.where(state.failed < 0, state.step, state.failed))

        mse = (terms.squared_error_D * jnp.square(hyper["scale_D"] / hyper["metric_D"])).sum()
        state = jax.lax.cond(jnp.isfinite(loss + mse) & (state.failed < 0), learn, freeze, grads)
        return state, {"loss": loss, "mse": mse, "l0": l0}

    return step


def near(W_FxD: jax.Array, start_FxD: jax.Array) -> jax.Array:
    """The rows of W, turned back to a cosine of SOFT_FROZEN with their start if it is smaller. Norms stay the same."""
    start_FxD, norm_Fx1 = unit_rows(start_FxD), jnp.linalg.norm(W_FxD, axis=1, keepdims=True)
    along_Fx1 = (W_FxD * start_FxD).sum(1, keepdims=True)
    across_FxD = unit_rows(W_FxD - along_Fx1 * start_FxD)
    turned_FxD = norm_Fx1 * (SOFT_FROZEN * start_FxD + (1 - SOFT_FROZEN**2) ** 0.5 * across_FxD)
    return jnp.where(along_Fx1 < SOFT_FROZEN * norm_Fx1, turned_FxD, W_FxD)


def look_for_dead(signature: Signature, hyper: Arrays, state: State, raw_NxD: jax.Array) -> State:
    """Revive, if a check is due after a block, the features that fired on too few rows since the last check."""
    steps = (state.step - state.last_dead_check).astype(jnp.float32)
    due = (steps >= hyper["dead_steps"]) & (state.step <= hyper["last_revival_step"]) & (state.failed < 0)
    dead_F = state.firings_F < jnp.maximum(hyper["dead_threshold"] * steps * hyper["batch_size"], 1.0)

    def revive(state: State) -> State:
        key, draw = jax.random.split(jax.random.wrap_key_data(state.key))
        sae = nnx.merge(signature.graphdef(), state.params, state.settings)
        clip, adam = state.optimizer
        params, (mu, nu) = resample(sae, (adam.mu, adam.nu), normalized(raw_NxD, hyper), dead_F, draw, hyper)
        optimizer, average = (clip, adam._replace(mu=mu, nu=nu)), state.average
        if average is not None:  # the average of replaced weights starts again
            average = jax.tree.map(lambda a, old, new: jnp.where(new != old, new, a), average, state.params, params)
        return state.replace(params=params, average=average, optimizer=optimizer, key=jax.random.key_data(key))

    state = jax.lax.cond(due & dead_F.any(), revive, lambda state: state, state)
    return state.replace(
        firings_F=jnp.where(due, 0, state.firings_F), last_dead_check=jnp.where(due, state.step, state.last_dead_check)
    )


def correct_l0(signature: Signature, hyper: Arrays, state: State, raw_NxD: jax.Array) -> State:
    """If a correction is due after a block, change the L0 that the controller aims at on training rows.

    The L0 on held-out rows then approaches the target. About twenty corrections lie between 20% and 80% of the run,
    before the learning rate falls, since the sparsity control slows down with it.
    """
    period = 0.03 * hyper["total_steps"]
    steers = (jnp.abs(state.step / hyper["total_steps"] - 0.5) <= 0.3) & (state.failed < 0)
    due = steers & (state.step - state.last_correction >= period)

    def correct(state: State) -> State:
        sae = nnx.merge(signature.graphdef(), state.params, state.settings)
        l0 = (sae.encode(normalized(raw_NxD, hyper)) != 0).sum(1).mean()
        missed = jnp.clip(jnp.log(hyper["target_l0"] / jnp.maximum(l0, 1e-6)), -LARGEST_CORRECTION, LARGEST_CORRECTION)
        return state.replace(log_l0_correction=state.log_l0_correction + 0.5 * missed, last_correction=state.step)

    return jax.lax.cond(due, correct, lambda state: state, state)


def make_block(signature: Signature, in_turn: bool) -> Callable:
    """(hyper, state, rows, calibration rows, steps) → (state, metrics per step and the dead fraction) of one member.

    Only so many steps are done, by default one for each batch; the other metrics are NaN. The number is an argument of
    the program, so that the last block of a run, which is shorter, needs no other program. Nothing is revived after it.
    """
    step = make_step(signature, in_turn)

    def block(
        hyper: Arrays,
        state: State,
        raw_LxSxBxD: jax.Array,
        calibration_LxNxD: jax.Array,
        steps: jax.Array | None = None,
    ):
        raw_SxBxD = raw_LxSxBxD[hyper["site"]]

        def one_more(s: jax.Array, so_far: tuple[State, Arrays]):
            state, metrics_S = so_far
            state, measured = step(hyper, state, raw_SxBxD[s])
            return state, {name: metrics_S[name].at[s].set(value) for name, value in measured.items()}

        blank_S = jnp.full(len(raw_SxBxD), jnp.nan)
        count = len(raw_SxBxD) if steps is None else steps
        state, metrics = jax.lax.fori_loop(0, count, one_more, (state, dict.fromkeys(("loss", "mse", "l0"), blank_S)))
        metrics["dead_fraction"] = (state.silent_F >= jnp.minimum(hyper["dead_steps"], state.step)).mean()
        metrics["failed"] = state.failed
        raw_NxD = raw_SxBxD.reshape(-1, raw_SxBxD.shape[-1])[-POOL_ROWS:]
        state = look_for_dead(signature, hyper, state, raw_NxD)
        if signature.sparsity_control == "target_l0" and calibration_LxNxD.shape[1]:
            state = correct_l0(signature, hyper, state, calibration_LxNxD[hyper["site"]])
        return state, metrics

    return block
