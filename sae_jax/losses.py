"""The training loss of one member: reconstruction, its recipe's penalty, and topk's AuxK.

Shapes: B rows, D width of the model, F features, K candidates of a row: in the sparse path all that is not zero.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae_jax.recipes import Recipe
from sae_jax.sae import SAE
from sae_jax.sparse import Candidates, decode_at, largest


class Terms(NamedTuple):
    error_BxD: jax.Array
    firings_F: jax.Array


def member_loss(
    sae: SAE,
    recipe: Recipe,
    x_BxD: jax.Array,
    coefficient: jax.Array,
    dead_F: jax.Array,
    aux_coefficient: jax.Array | None,
    known_BxF: jax.Array | None = None,
    at: Candidates | None = None,
) -> tuple[jax.Array, Terms]:
    """mean_B Σ_D (x − x̂)² + λ · penalty (+ α · AuxK, where α is given), and what the step needs besides.

    `known_BxF` is x W_enc, where it is known already; `at` the candidates, for the sparse path.
    """
    z = sae.pre_activations(x_BxD, known_BxF, at)
    f = sae.activate(z, at)
    error_BxD = x_BxD - sae.decode(f, at)
    loss = mean_square(error_BxD) + coefficient * recipe.penalty(sae, z, f, at)
    if aux_coefficient is not None:
        detached_BxD = jax.lax.stop_gradient(error_BxD)
        loss += aux_coefficient * auxk(sae, x_BxD, detached_BxD, dead_F, known_BxF, sparse=at is not None)
    fires = f > 0
    firings_F = fires.sum(0) if at is None else jnp.zeros_like(dead_F, int).at[at.indices_BxK].add(fires)
    return loss, Terms(error_BxD, firings_F)


def mean_square(error_BxD: jax.Array) -> jax.Array:
    return jnp.square(error_BxD).sum(-1).mean()


def variance(x_BxD: jax.Array) -> jax.Array:
    return mean_square(x_BxD - x_BxD.mean(0))


def auxk(sae: SAE, x_BxD, error_BxD, dead_F, known_BxF, sparse: bool) -> jax.Array:
    """‖e − ê‖² · var(x)/var(e) (Gao et al. 2024, whose code divides by var(x), by var(e)).

    ê comes from the D/2 largest pre-activations among dead features, decoded without b_dec. Scaled down while fewer
    than D/2 are dead, as SAELens does, to zero where none is.
    """
    k = min(error_BxD.shape[1] // 2, len(dead_F))
    z_BxF = sae.pre_activations(x_BxD, known_BxF)
    score_BxF = jnp.where(dead_F, jax.lax.stop_gradient(z_BxF), -jnp.inf)
    if sparse:
        count_B = jnp.full(len(z_BxF), jnp.minimum(k, dead_F.sum()))
        at = largest(score_BxF, count_B, k)
        z_BxK = sae.pre_activations(x_BxD, known_BxF, at)
        counts_BxK = jnp.arange(z_BxK.shape[1]) < count_B[:, None]
        revived_BxD = decode_at(jnp.where(counts_BxK, jax.nn.relu(z_BxK), 0.0), sae.W_dec[...], at)
    else:
        rows_Bx1, indices_BxK = jnp.arange(len(z_BxF))[:, None], jax.lax.top_k(score_BxF, k)[1]
        chosen_BxF = jnp.zeros(z_BxF.shape, bool).at[rows_Bx1, indices_BxK].set(True, unique_indices=True)
        revived_BxD = jnp.where(chosen_BxF & dead_F, jax.nn.relu(z_BxF), 0.0) @ sae.W_dec
    relative = variance(x_BxD) / jnp.maximum(variance(error_BxD), 1e-30)
    return relative * jnp.minimum(1.0, dead_F.sum() / k) * mean_square(error_BxD - revived_BxD)
