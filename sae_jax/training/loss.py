"""The training loss of one member: reconstruction error, the penalty of its kind, and further terms of its kind.

Shapes: B rows, D width of the model, F features, K candidates per row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae_jax.models.auxk import auxk, mean_square
from sae_jax.models.base import SAE, Batch


class Terms(NamedTuple):
    """Further results of the loss that a training step needs."""

    squared_error_D: jax.Array  # mean over rows
    firings_F: jax.Array
    statistics: jax.Array


def member_loss(sae: SAE, coefficient: jax.Array, batch: Batch) -> tuple[jax.Array, Terms]:
    """The loss mean_B Σ_D (x · metric − x̂)² + λ · penalty + extra + AuxK, and its further results."""
    at = batch.at
    z = sae.pre_activations(batch.x_BxD, batch.known_BxF, at)
    f = sae.activate_training(z, at)
    error_BxD = batch.target_BxD - sae.decode(f, at)
    penalty = coefficient * sae.penalty(z, f, batch)
    loss = mean_square(error_BxD) + penalty + sae.extra_loss(z, f, error_BxD, batch)
    if batch.revive:
        loss += auxk(sae, error_BxD, batch)
    fires = f != 0
    firings_F = fires.sum(0) if at is None else jnp.zeros_like(batch.dead_F, int).at[at.indices_BxK].add(fires)
    return loss, Terms(jnp.square(error_BxD).mean(0), firings_F, sae.batch_statistics(f))
