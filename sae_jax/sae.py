"""The sparse autoencoder as a Flax module, written for one member.

Shapes: B rows, D width of the model, F features. Parameters are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.activations import jump_relu, keep_largest


class Setting(nnx.Variable):
    """A number that a member has and training does not change; members of one group may differ in it."""


class SAE(nnx.Module):
    """f = act((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec.

    W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D]; `threshold` [F] belongs to jump_relu, `k` to topk (`k_max` is
    its static bound, k where not given). `bandwidth` is the width of
    the straight-through kernel of jump_relu's threshold and has no part in the features themselves.
    """

    def __init__(
        self,
        activation: str,
        W_enc: jax.Array,
        b_enc: jax.Array,
        W_dec: jax.Array,
        b_dec: jax.Array,
        threshold: jax.Array | None = None,
        bandwidth: float = 1.0,
        k: int | None = None,
        k_max: int | None = None,
    ):
        self.activation, self.k_max = activation, k_max or k
        self.W_enc, self.b_enc = nnx.Param(W_enc), nnx.Param(b_enc)
        self.W_dec, self.b_dec = nnx.Param(W_dec), nnx.Param(b_dec)
        if activation == "jump_relu":
            self.threshold = nnx.Param(threshold)
            self.bandwidth = Setting(jnp.float32(bandwidth))
        if activation == "topk":
            self.k = Setting(jnp.int32(k))

    def pre_activations(self, x_BxD: jax.Array) -> jax.Array:
        """z_BxF. The bias is moved behind the product, which saves a matmul of the rows in the backward pass."""
        return x_BxD @ self.W_enc + (self.b_enc - self.b_dec @ self.W_enc)

    def activate(self, z_BxF: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.activation](self, z_BxF)

    def encode(self, x_BxD: jax.Array) -> jax.Array:
        return self.activate(self.pre_activations(x_BxD))

    def decode(self, f_BxF: jax.Array) -> jax.Array:
        return f_BxF @ self.W_dec + self.b_dec

    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        return self.decode(self.encode(x_BxD))


ACTIVATIONS = {
    "relu": lambda sae, z_BxF: jax.nn.relu(z_BxF),
    "jump_relu": lambda sae, z_BxF: jump_relu(z_BxF, sae.threshold[...], sae.bandwidth[...]),
    "topk": lambda sae, z_BxF: keep_largest(z_BxF, sae.k[...], sae.k_max),
}


def unit_rows(W_FxD: jax.Array) -> jax.Array:
    return W_FxD / jnp.maximum(jnp.linalg.norm(W_FxD, axis=1, keepdims=True), 1e-30)
