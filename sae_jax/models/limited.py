"""SAEs that were trained without rows of extreme norm, and leave such rows as they are.

Shapes: B rows, D width of the model, F features.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp

from sae_jax.models.base import SAE


class Limited(SAE):
    """An SAE with no feature on a row whose norm is over `max_norm`, and with the row itself as its reconstruction."""

    max_norm: float

    def encode(self, x_BxD: jax.Array) -> jax.Array:
        return jnp.where(self.knows(x_BxD), super().encode(x_BxD), 0)

    def reconstruct(self, x_BxD: jax.Array, f_BxF: jax.Array) -> jax.Array:
        return jnp.where(self.knows(x_BxD), super().reconstruct(x_BxD, f_BxF), x_BxD)

    def knows(self, x_BxD: jax.Array) -> jax.Array:
        return jnp.linalg.norm(x_BxD, axis=-1, keepdims=True) <= self.max_norm


@cache
def limited(kind: type[SAE], max_norm: float) -> type[SAE]:
    """The subclass of `kind` for rows up to a norm."""
    return type(f"Limited{kind.__name__}", (Limited, kind), {"max_norm": max_norm})
