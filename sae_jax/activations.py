"""Pre-activations to features, with the gradients that training needs.

Shapes: B rows, F features, K active features. z_BxF are pre-activations, f_BxF features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def jump_relu(z: jax.Array, threshold: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """f = z · 1[z > θ] (Rajamanoharan et al. 2024, eq. 2); z's gradient passes where f does.

    θ, of z's shape, has the straight-through gradient −(θ/ε) · 1[|z − θ| < ε/2]. The kernel is fed with z: the
    features themselves are zero below θ and would hide half of it.
    """
    return jnp.where(z > threshold, z, 0.0)


def _jump_relu_backward(saved, g):
    z, threshold, bandwidth = saved
    near = jnp.abs(z - threshold) < bandwidth / 2
    return jnp.where(z > threshold, g, 0.0), jnp.where(near, -(threshold / bandwidth) * g, 0.0), None


jump_relu.defvjp(lambda *inputs: (jump_relu(*inputs), inputs), _jump_relu_backward)


@jax.custom_vjp
def is_above(z: jax.Array, threshold: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """1[z > θ], of which L0 is the sum; θ's gradient is −(1/ε) · 1[|z − θ| < ε/2], z gets none (ibid., eq. 12)."""
    return (z > threshold).astype(z.dtype)


def _is_above_backward(saved, g):
    z, threshold, bandwidth = saved
    near = jnp.abs(z - threshold) < bandwidth / 2
    return jnp.zeros_like(z), jnp.where(near, -g / bandwidth, 0.0), None


is_above.defvjp(lambda *inputs: (is_above(*inputs), inputs), _is_above_backward)


def keep_largest(z_BxF: jax.Array, k: jax.Array, k_max: int) -> jax.Array:
    """The k largest pre-activations of each row, then ReLU (Gao et al. 2024): fewer than k may fire.

    k may be traced; k_max is the static number of candidates. Ties go to the lower index, never to more than k.
    """
    _, indices_BxK = jax.lax.top_k(jax.lax.stop_gradient(z_BxF), k_max)
    rows_Bx1, is_kept_K = jnp.arange(len(z_BxF))[:, None], jnp.arange(k_max) < k
    kept_BxF = jnp.zeros(z_BxF.shape, bool).at[rows_Bx1, indices_BxK].set(is_kept_K, unique_indices=True)
    return jnp.where(kept_BxF, jax.nn.relu(z_BxF), 0.0)  # a mask: its gradient needs no scatter
