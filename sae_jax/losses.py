"""The training loss of one member: reconstruction, its recipe's penalty, and topk's AuxK.

Shapes: B rows, D width of the model, F features, K features that AuxK revives at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae_jax.recipes import Recipe
from sae_jax.sae import SAE


class Terms(NamedTuple):
    error_BxD: jax.Array
    firings_F: jax.Array


def member_loss(sae: SAE, recipe: Recipe, x_BxD, coefficient, dead_F, aux_coefficient) -> tuple[jax.Array, Terms]:
    """mean_B Σ_D (x − x̂)² + λ · penalty (+ α · AuxK), and what the step needs besides."""
    z_BxF = sae.pre_activations(x_BxD)
    f_BxF = sae.activate(z_BxF)
    error_BxD = x_BxD - sae.decode(f_BxF)
    loss = mean_square(error_BxD) + coefficient * recipe.penalty(sae, z_BxF, f_BxF)
    if sae.activation == "topk":
        loss += aux_coefficient * auxk(sae, z_BxF, x_BxD, jax.lax.stop_gradient(error_BxD), dead_F)
    return loss, Terms(error_BxD, (f_BxF > 0).sum(0))


def mean_square(error_BxD: jax.Array) -> jax.Array:
    return jnp.square(error_BxD).sum(-1).mean()


def variance(x_BxD: jax.Array) -> jax.Array:
    return mean_square(x_BxD - x_BxD.mean(0))


def auxk(sae: SAE, z_BxF: jax.Array, x_BxD: jax.Array, error_BxD: jax.Array, dead_F: jax.Array) -> jax.Array:
    """‖e − ê‖² · var(x)/var(e) (Gao et al. 2024, whose code divides by var(x), by var(e)).

    ê comes from the D/2 largest pre-activations among dead features, decoded without b_dec. Zero, and not computed,
    while no feature is dead; scaled down while fewer than D/2 are, as SAELens does.
    """
    k = min(error_BxD.shape[1] // 2, z_BxF.shape[1])

    def revive(z_BxF, W_dec_FxD):
        values_BxK, indices_BxK = jax.lax.top_k(jnp.where(dead_F, z_BxF, -jnp.inf), k)
        values_BxK = jax.nn.relu(values_BxK)  # takes -inf, where fewer than k are dead, to 0
        rows_Bx1 = jnp.arange(len(z_BxF))[:, None]
        f_BxF = jnp.zeros_like(z_BxF).at[rows_Bx1, indices_BxK].set(values_BxK, unique_indices=True)
        relative = variance(x_BxD) / jnp.maximum(variance(error_BxD), 1e-30)
        return relative * jnp.minimum(1.0, dead_F.sum() / k) * mean_square(error_BxD - f_BxF @ W_dec_FxD)

    return jax.lax.cond(dead_F.any(), revive, lambda z, W: jnp.zeros(()), z_BxF, sae.W_dec[...])
