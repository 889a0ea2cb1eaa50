"""Activation functions with the gradients that training needs.

Shapes: B rows, F features, K active features. z are pre-activations and f feature values; θ has the shape of z.
"""

from __future__ import annotations

from collections.abc import Callable

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


def mask_of_largest(score_BxF: jax.Array, k: jax.Array, k_max: int, split: bool) -> jax.Array:
    """A mask of the k largest values of each row. k may be traced, k_max is static. Ties go to the lower index.

    A mask is returned because its use needs no scatter in the backward pass. If the features are `split` over devices,
    the mask lacks the values that are not positive, which no kind needs, and keeps all of equal values.
    """
    if split:
        return positive_among_largest(score_BxF, k)
    _, indices_BxK = jax.lax.top_k(jax.lax.stop_gradient(score_BxF), k_max)
    rows_Bx1, is_kept_K = jnp.arange(len(score_BxF))[:, None], jnp.arange(k_max) < k
    return jnp.zeros(score_BxF.shape, bool).at[rows_Bx1, indices_BxK].set(is_kept_K, unique_indices=True)


def positive_among_largest(score_BxF: jax.Array, k: jax.Array) -> jax.Array:
    """A mask of the positive values among the k largest of each row, found by counting. Equal values are all kept.

    Counts can be summed over devices that each hold some of the features; a sort would need all features on one.
    """
    count_B = jnp.broadcast_to(k, len(score_BxF))
    bits_BxF = positive_bits(jax.lax.stop_gradient(score_BxF))
    least_B = largest_with(lambda middle_B: (bits_BxF >= middle_B[:, None]).sum(1) >= count_B, count_B.shape)
    return (bits_BxF >= least_B[:, None]) & (bits_BxF > 0)


def nth_largest(values: jax.Array, n: jax.Array) -> jax.Array:
    """The n-th largest of all values, or 0 if it is not positive, found by bisection on the bits of float32."""
    bits = positive_bits(values)

    def are_enough(least: jax.Array) -> jax.Array:
        by_column = jax.lax.optimization_barrier((bits >= least).sum(0))  # a CPU sums the whole array one by one
        return by_column.sum() >= n

    return jax.lax.bitcast_convert_type(largest_with(are_enough, ()), jnp.float32)


def positive_bits(values: jax.Array) -> jax.Array:
    """The bits of the positive values as whole numbers, which are in the same order; 0 for the others."""
    return jax.lax.bitcast_convert_type(jnp.maximum(values, 0.0), jnp.int32)


def largest_with(are_enough: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The largest bits of a positive float32 for which enough values are at least as large, by bisection."""

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        enough = are_enough(middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    return jax.lax.fori_loop(0, 31, halve, (jnp.zeros(shape, jnp.int32), jnp.full(shape, 0x7F800000, jnp.int32)))[0]
