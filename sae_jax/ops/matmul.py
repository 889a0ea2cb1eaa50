"""Matrix products in lower precision: operands are rounded; sums, parameters and gradients are float32."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


def matmul(a_NxM: jax.Array, b_MxK: jax.Array, dtype: str) -> jax.Array:
    """The product a b, [N, K] in float32, with operands rounded to `dtype` in the forward and backward pass."""
    return a_NxM @ b_MxK if dtype == "float32" else rounded(a_NxM, b_MxK, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rounded(a_NxM: jax.Array, b_MxK: jax.Array, dtype: str) -> jax.Array:
    return jnp.matmul(a_NxM.astype(dtype), b_MxK.astype(dtype), preferred_element_type=jnp.float32)


def _forward(a_NxM, b_MxK, dtype):
    a_NxM, b_MxK = a_NxM.astype(dtype), b_MxK.astype(dtype)  # halves the arrays kept for the backward pass
    return rounded(a_NxM, b_MxK, dtype), (a_NxM, b_MxK)


def _backward(dtype, saved, g_NxK):
    a_NxM, b_MxK = saved
    return rounded(g_NxK, b_MxK.T, dtype), rounded(a_NxM.T, g_NxK, dtype)


rounded.defvjp(_forward, _backward)
