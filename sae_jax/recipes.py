"""How each kind of dictionary is started, penalized and kept at its sparsity: one recipe a (kind, what is given).

    ("relu", "target_l0")      L1 whose coefficient is steered until L0 features fire        the default of relu
    ("relu", "sparsity")       the fixed coefficient of the paper (Anthropic, April 2024)
    ("jump_relu", "target_l0") λ · L0 whose λ and thresholds are steered to an L0            the default of jump_relu
    ("jump_relu", "sparsity")  λ · L0 of the paper (Rajamanoharan et al. 2024)
    ("topk", "k")              exactly k candidates a row (Gao et al. 2024)

The steered ones start every feature at the (1 − L0/F) quantile q of the pre-activations of some training rows. Their
constants are in units of q and of the pre-activations' standard deviation, so they hold at any scale of the rows.
jump_relu has two hands on L0: all thresholds move together, which is quick, and λ follows, which says how much a
firing has to be worth. Without λ the rarely firing features lose: Adam makes every threshold's pull equally large,
and in long runs half of the dictionary dies (figures in this folder's README).

Shapes: N rows to start from, B rows of a batch, F features. `params` and `hyper` are dicts of arrays, `s` in [0, 1]
is the learning rate's schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae_jax.activations import is_above
from sae_jax.sae import SAE
from sae_jax.sparse import Candidates, pick

Arrays = dict[str, jax.Array]

COEFFICIENT_RATE = 0.02  # of log λ a step
THRESHOLD_RATE = 0.2  # of the straight-through kernel's width a step
KERNEL = 0.25  # its width, in standard deviations of the pre-activations: narrow, so that few features are near


class Start(NamedTuple):
    params: Arrays
    settings: Arrays
    coefficient: jax.Array


class Recipe(NamedTuple):
    start: Callable[[Arrays, Arrays, jax.Array, Arrays], Start]  # params, settings, z_NxF, hyper
    penalty: Callable[[SAE, jax.Array, jax.Array, Candidates | None], jax.Array]
    # sae, z, f (of all features, or at the candidates) → to be weighted by the coefficient
    adjust: Callable[[Arrays, Arrays, jax.Array, jax.Array, jax.Array, Arrays], tuple[Arrays, jax.Array]]
    # params, settings, coefficient, l0, s, hyper → params, coefficient


def excess(l0: jax.Array, hyper: Arrays) -> jax.Array:
    """How far L0 lies over its target: log(L0 / L0*), at most one e-fold either way."""
    return jnp.clip(jnp.log(jnp.maximum(l0, 1e-6) / hyper["target_l0"]), -1.0, 1.0)


def steered(coefficient: jax.Array, l0: jax.Array, s: jax.Array, hyper: Arrays) -> jax.Array:
    return coefficient * jnp.exp(COEFFICIENT_RATE * s * excess(l0, hyper))


def start_quantile(z_NxF: jax.Array, hyper: Arrays) -> jax.Array:
    return jnp.quantile(z_NxF, 1 - hyper["target_l0"] / z_NxF.shape[1])


def relu_steered_start(params, settings, z_NxF, hyper):
    q = start_quantile(z_NxF, hyper)
    return Start({**params, "b_enc": params["b_enc"] - q}, settings, 2 * jnp.maximum(q, 0.1 * z_NxF.std()))


def relu_steered_adjust(params, settings, coefficient, l0, s, hyper):
    return params, steered(coefficient, l0, s, hyper)


def jump_relu_steered_start(params, settings, z_NxF, hyper):
    q = jnp.maximum(start_quantile(z_NxF, hyper), 0.1 * z_NxF.std())
    threshold_F = jnp.full_like(params["threshold"], q)
    return Start(
        {**params, "threshold": threshold_F}, {**settings, "bandwidth": KERNEL * z_NxF.std()}, 0.5 * jnp.square(q)
    )


def jump_relu_steered_adjust(params, settings, coefficient, l0, s, hyper):
    moved_F = params["threshold"] + THRESHOLD_RATE * settings["bandwidth"] * s * excess(l0, hyper)
    return {**params, "threshold": jnp.maximum(moved_F, 0.0)}, steered(coefficient, l0, s, hyper)


def fixed_start(params, settings, z_NxF, hyper):
    return Start(params, settings, jnp.float32(0))


def fixed_adjust(params, settings, coefficient, l0, s, hyper):
    """The coefficient rises linearly to its value over the warm-up; a threshold stays at 0 or above."""
    risen = jnp.minimum(1.0, (hyper["step"] + 1) / hyper["warmup_steps"])
    if "threshold" in params:
        params = {**params, "threshold": jnp.maximum(params["threshold"], 0.0)}
    return params, hyper["sparsity"] * risen


def weighted_l1(sae, z, f, at):
    """mean_B Σ_F f · ‖W_dec‖₂."""
    norm_F = jnp.linalg.norm(sae.W_dec[...], axis=1)
    return (f @ norm_F).mean() if at is None else (f * pick(norm_F, at)).sum(-1).mean()


def l0_count(sae, z, f, at):
    return is_above(z, jnp.broadcast_to(pick(sae.threshold[...], at), z.shape), sae.bandwidth[...]).sum(-1).mean()


def no_penalty(sae, z, f, at):
    return jnp.float32(0)


def no_adjust(params, settings, coefficient, l0, s, hyper):
    return params, coefficient


RECIPES = {
    ("relu", "target_l0"): Recipe(relu_steered_start, weighted_l1, relu_steered_adjust),
    ("relu", "sparsity"): Recipe(fixed_start, weighted_l1, fixed_adjust),
    ("jump_relu", "target_l0"): Recipe(jump_relu_steered_start, l0_count, jump_relu_steered_adjust),
    ("jump_relu", "sparsity"): Recipe(fixed_start, l0_count, fixed_adjust),
    ("topk", "k"): Recipe(fixed_start, no_penalty, no_adjust),
}
