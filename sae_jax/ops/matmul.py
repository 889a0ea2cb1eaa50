"""Matrix products in a lower precision: operands rounded, sums in float32, parameters and gradients float32."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


def matmul(a_NxM: jax.Array, b_MxK: jax.Array, dtype: str) -> jax.Array:
    """a b, [N, K] in float32, with both rounded to `dtype`, forward and backward."""
    return a_NxM @ b_MxK if dtype == "float32" else rounded(a_NxM, b_MxK, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rounded(a_NxM: jax.Array, b_MxK: jax.Array, dtype: str) -> jax.Array:
    return jnp.matmul(a_NxM.astype(dtype), b_MxK.astype(dtype), preferred_element_type=jnp.float32)


def _forward(a_NxM, b_MxK, dtype):
    a_NxM, b_MxK = a_NxM.astype(dtype), b_MxK.astype(dtype)  # what is kept for the way back is half as large
    return rounded(a_NxM, b_MxK, dtype), (a_NxM, b_MxK)


def _backward(dtype, saved, g_NxK):
    a_NxM, b_MxK = saved
    return rounded(g_NxK, b_MxK.T, dtype), rounded(a_NxM.T, g_NxK, dtype)


rounded.defvjp(_forward, _backward)
