"""Activation functions with the gradients that training needs.

Shapes: B rows, F features, K active features. z are pre-activations and f feature values; θ has the shape of z.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def jump_relu(z: jax.Array, threshold: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """f = z · 1[z > θ] (Rajamanoharan et al. 2024, eq. 2). The gradient passes to z if z > θ.

    θ has the straight-through gradient −(θ/ε) · 1[|z − θ| < ε/2]. The kernel is a function of z and not of f, because f
    is zero below θ, which would hide half of the kernel.
    """
    return jnp.where(z > threshold, z, 0.0)


def _jump_relu_backward(saved, g):
    z, threshold, bandwidth = saved
    near = jnp.abs(z - threshold) < bandwidth / 2
    return jnp.where(z > threshold, g, 0.0), jnp.where(near, -(threshold / bandwidth) * g, 0.0), None


jump_relu.defvjp(lambda *inputs: (jump_relu(*inputs), inputs), _jump_relu_backward)


@jax.custom_vjp
def is_above(z: jax.Array, threshold: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """1 where a pre-activation z is above its threshold θ, otherwise 0. The sum is L0.

    This is eq. 12 of Rajamanoharan et al. 2024. θ has the gradient −(1/ε) · 1[|z − θ| < ε/2]; z has none.
    """
    return (z > threshold).astype(z.dtype)


def _is_above_backward(saved, g):
    z, threshold, bandwidth = saved
    near = jnp.abs(z - threshold) < bandwidth / 2
    return jnp.zeros_like(z), jnp.where(near, -g / bandwidth, 0.0), None


is_above.defvjp(lambda *inputs: (is_above(*inputs), inputs), _is_above_backward)


def mask_of_largest(score_BxF: jax.Array, k: jax.Array, k_max: int) -> jax.Array:
    """A mask of the k largest values of each row. k may be traced, k_max is static. Ties go to the lower index.

    A mask is returned because its use needs no scatter in the backward pass.
    """
    _, indices_BxK = jax.lax.top_k(jax.lax.stop_gradient(score_BxF), k_max)
    rows_Bx1, is_kept_K = jnp.arange(len(score_BxF))[:, None], jnp.arange(k_max) < k
    return jnp.zeros(score_BxF.shape, bool).at[rows_Bx1, indices_BxK].set(is_kept_K, unique_indices=True)


def nth_largest(values: jax.Array, n: jax.Array) -> jax.Array:
    """The n-th largest of all values, or 0 if it is not positive, found by bisection on the bits of float32."""
    bits = jax.lax.bitcast_convert_type(jnp.maximum(values, 0.0), jnp.int32)  # in the same order as the floats

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        by_column = jax.lax.optimization_barrier((bits >= middle).sum(0))  # a CPU sums the whole array one by one
        enough = by_column.sum() >= n
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(0x7F800000)))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
