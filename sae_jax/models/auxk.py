"""AuxK (Gao et al. 2024): dead features learn to reconstruct the error of the living features."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sae_jax.models.base import Batch
from sae_jax.ops.activations import mask_of_largest
from sae_jax.ops.sparse import largest


def mean_square(error_BxD: jax.Array) -> jax.Array:
    return jnp.square(error_BxD).sum(-1).mean()


def variance(x_BxD: jax.Array) -> jax.Array:
    return mean_square(x_BxD - x_BxD.mean(0, keepdims=True))


def auxk(sae, error_BxD: jax.Array, batch: Batch) -> jax.Array:
    """The auxiliary loss α · ‖e − ê‖² · var(x)/var(e) of dead features. No gradient flows through the error e.

    ê is decoded, without b_dec, from the D/2 largest pre-activations among the dead features. The loss is scaled down
    while fewer than D/2 features are dead, as in SAELens, and is zero if no feature is dead. The factor var(x)/var(e)
    is there because the main loss is not divided by var(x): the paper's code divides it by var(x), and AuxK by var(e).
    """
    error_BxD, dead_F = jax.lax.stop_gradient(error_BxD), batch.dead_F
    k = min(error_BxD.shape[1] // 2, len(dead_F))
    z_BxF = sae.pre_activations(batch.x_BxD, batch.known_BxF)
    score_BxF = jnp.where(dead_F[None], jax.lax.stop_gradient(z_BxF), -jnp.inf)
    if batch.at is not None:
        count_B = jnp.full(len(z_BxF), jnp.minimum(k, dead_F.sum()))
        at = largest(score_BxF, count_B, k)
        z_BxK = sae.pre_activations(batch.x_BxD, batch.known_BxF, at)
        counts_BxK = jnp.arange(z_BxK.shape[1])[None] < count_B[:, None]
        f = jnp.where(counts_BxK, jax.nn.relu(z_BxK), 0.0)
    else:
        at, chosen_BxF = None, mask_of_largest(score_BxF, jnp.int32(k), k, sae.split) & dead_F[None]
        f = jnp.where(chosen_BxF, jax.nn.relu(z_BxF), 0.0)
    revived_BxD = sae.decoder_product(f, sae.W_dec[...], at)
    relative = variance(batch.target_BxD) / jnp.maximum(variance(error_BxD), 1e-30)
    scale = batch.hyper["aux_coefficient"] * jnp.minimum(1.0, dead_F.sum() / k)
    return scale * relative * mean_square(error_BxD - revived_BxD)
