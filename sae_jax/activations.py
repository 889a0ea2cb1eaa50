"""Pre-activations to features, with the gradients that training needs.

Shapes: B rows, F features, K active features. z_BxF are pre-activations, f_BxF features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def jump_relu(z_BxF: jax.Array, threshold_F: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """f = z · 1[z > θ] (Rajamanoharan et al. 2024, eq. 2); z's gradient passes where f does.

    θ's gradient is the straight-through −(θ/ε) · 1[|z − θ| < ε/2]. The kernel is fed with z: the features
    themselves are zero below θ and would hide half of it.
    """
    return jnp.where(z_BxF > threshold_F, z_BxF, 0.0)


def _jump_relu_forward(z_BxF, threshold_F, bandwidth):
    return jump_relu(z_BxF, threshold_F, bandwidth), (z_BxF, threshold_F, bandwidth)


def _jump_relu_backward(saved, g_BxF):
    z_BxF, threshold_F, bandwidth = saved
    g_z_BxF = jnp.where(z_BxF > threshold_F, g_BxF, 0.0)
    near_BxF = jnp.abs(z_BxF - threshold_F) < bandwidth / 2
    g_threshold_F = -(threshold_F / bandwidth) * jnp.where(near_BxF, g_BxF, 0.0).sum(0)
    return g_z_BxF, g_threshold_F, jnp.zeros_like(bandwidth)


jump_relu.defvjp(_jump_relu_forward, _jump_relu_backward)


@jax.custom_vjp
def count_above(z_BxF: jax.Array, threshold_F: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """L0 of each row, Σ_F 1[z > θ]; θ's gradient is −(1/ε) · 1[|z − θ| < ε/2], z gets none (ibid., eq. 12)."""
    return (z_BxF > threshold_F).sum(-1).astype(z_BxF.dtype)


def _count_above_forward(z_BxF, threshold_F, bandwidth):
    return count_above(z_BxF, threshold_F, bandwidth), (z_BxF, threshold_F, bandwidth)


def _count_above_backward(saved, g_B):
    z_BxF, threshold_F, bandwidth = saved
    near_BxF = jnp.abs(z_BxF - threshold_F) < bandwidth / 2
    g_threshold_F = -jnp.where(near_BxF, g_B[:, None], 0.0).sum(0) / bandwidth
    return jnp.zeros_like(z_BxF), g_threshold_F, jnp.zeros_like(bandwidth)


count_above.defvjp(_count_above_forward, _count_above_backward)


def keep_largest(z_BxF: jax.Array, k: jax.Array, k_max: int) -> jax.Array:
    """The k largest pre-activations of each row, then ReLU (Gao et al. 2024): fewer than k may fire.

    k may be traced; k_max is the static number of candidates. Ties go to the lower index, never to more than k.
    """
    _, indices_BxK = jax.lax.top_k(jax.lax.stop_gradient(z_BxF), k_max)
    rows_Bx1, is_kept_K = jnp.arange(len(z_BxF))[:, None], jnp.arange(k_max) < k
    kept_BxF = jnp.zeros(z_BxF.shape, bool).at[rows_Bx1, indices_BxK].set(is_kept_K, unique_indices=True)
    return jnp.where(kept_BxF, jax.nn.relu(z_BxF), 0.0)  # a mask: its gradient needs no scatter
