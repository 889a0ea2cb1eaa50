"""AuxK (Gao et al. 2024): dead features learn to reconstruct what the living ones leave over."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sae_jax.models.base import Batch
from sae_jax.ops.activations import mask_of_largest
from sae_jax.ops.sparse import largest


def mean_square(error_BxD: jax.Array) -> jax.Array:
    return jnp.square(error_BxD).sum(-1).mean()


def variance(x_BxD: jax.Array) -> jax.Array:
    return mean_square(x_BxD - x_BxD.mean(0))


def auxk(sae, error_BxD: jax.Array, batch: Batch) -> jax.Array:
    """α · ‖e − ê‖² · var(x)/var(e), e detached (the paper's code divides by var(x), by var(e)).

    ê comes from the D/2 largest pre-activations among dead features, decoded without b_dec. Scaled down while fewer
    than D/2 are dead, as SAELens does, to zero where none is.
    """
    error_BxD, dead_F = jax.lax.stop_gradient(error_BxD), batch.dead_F
    k = min(error_BxD.shape[1] // 2, len(dead_F))
    z_BxF = sae.pre_activations(batch.x_BxD, batch.known_BxF)
    score_BxF = jnp.where(dead_F, jax.lax.stop_gradient(z_BxF), -jnp.inf)
    if batch.at is not None:
        count_B = jnp.full(len(z_BxF), jnp.minimum(k, dead_F.sum()))
        at = largest(score_BxF, count_B, k)
        z_BxK = sae.pre_activations(batch.x_BxD, batch.known_BxF, at)
        counts_BxK = jnp.arange(z_BxK.shape[1]) < count_B[:, None]
        f = jnp.where(counts_BxK, jax.nn.relu(z_BxK), 0.0)
    else:
        at, chosen_BxF = None, mask_of_largest(score_BxF, jnp.int32(k), k) & dead_F
        f = jnp.where(chosen_BxF, jax.nn.relu(z_BxF), 0.0)
    revived_BxD = sae.decoder_product(f, sae.W_dec[...], at)
    relative = variance(batch.x_BxD) / jnp.maximum(variance(error_BxD), 1e-30)
    scale = batch.hyper["aux_coefficient"] * jnp.minimum(1.0, dead_F.sum() / k)
    return scale * relative * mean_square(error_BxD - revived_BxD)
