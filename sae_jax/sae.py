"""The sparse autoencoder as a Flax module, written for one member.

Shapes: B rows, D width of the model, F features, K candidates a row. Parameters are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.activations import jump_relu, keep_largest
from sae_jax.sparse import Candidates, decode_at, pick, product, product_at


class Setting(nnx.Variable):
    """A number that a member has and training does not change; members of one group may differ in it."""


class SAE(nnx.Module):
    """f = act((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec.

    W_encT [F, D] (the encoder with a row a feature, as the decoder: its gradient is written by rows, which saves a
    sixth of a step), b_enc [F], W_dec [F, D], b_dec [D]. `threshold` [F] belongs to jump_relu; `bandwidth` is the width
    of its straight-through kernel and has no part in the features themselves. `k` belongs to topk, `k_max` is its
    static bound (k where not given).
    """

    def __init__(
        self,
        activation: str,
        W_encT: jax.Array,
        b_enc: jax.Array,
        W_dec: jax.Array,
        b_dec: jax.Array,
        threshold: jax.Array | None = None,
        bandwidth: float = 1.0,
        k: int | None = None,
        k_max: int | None = None,
    ):
        self.activation, self.k_max = activation, k_max or k
        self.W_encT, self.b_enc = nnx.Param(W_encT), nnx.Param(b_enc)
        self.W_dec, self.b_dec = nnx.Param(W_dec), nnx.Param(b_dec)
        if activation == "jump_relu":
            self.threshold = nnx.Param(threshold)
            self.bandwidth = Setting(jnp.float32(bandwidth))
        if activation == "topk":
            self.k = Setting(jnp.int32(k))

    def pre_activations(
        self, x_BxD: jax.Array, known_BxF: jax.Array | None = None, at: Candidates | None = None
    ) -> jax.Array:
        """z_BxF, or z_BxK at each row's candidates; where x W_enc is known, it is not computed again.

        The bias is moved behind the product, which saves a matmul of the rows in the backward pass.
        """
        bias_F = self.b_enc - self.W_encT @ self.b_dec
        if at is not None:
            return product_at(x_BxD, self.W_encT[...], known_BxF, at) + pick(bias_F, at)
        return (x_BxD @ self.W_encT.T if known_BxF is None else product(x_BxD, self.W_encT[...], known_BxF)) + bias_F

    def activate(self, z: jax.Array, at: Candidates | None = None) -> jax.Array:
        if self.activation == "relu":
            return jax.nn.relu(z)
        if self.activation == "jump_relu":
            return jump_relu(z, jnp.broadcast_to(pick(self.threshold[...], at), z.shape), self.bandwidth[...])
        if at is not None:
            return jnp.where(jnp.arange(z.shape[1]) < self.k, jax.nn.relu(z), 0.0)
        return keep_largest(z, self.k[...], self.k_max)

    def may_matter(self, z_BxF: jax.Array) -> jax.Array:
        """Which features have a part in a row's loss or gradients, for kinds that fire by a threshold."""
        return z_BxF > (0.0 if self.activation == "relu" else self.threshold - self.bandwidth / 2)

    def encode(self, x_BxD: jax.Array) -> jax.Array:
        return self.activate(self.pre_activations(x_BxD))

    def decode(self, f: jax.Array, at: Candidates | None = None) -> jax.Array:
        return (f @ self.W_dec if at is None else decode_at(f, self.W_dec[...], at)) + self.b_dec

    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        return self.decode(self.encode(x_BxD))


def unit_rows(W_FxD: jax.Array) -> jax.Array:
    return W_FxD / jnp.maximum(jnp.linalg.norm(W_FxD, axis=1, keepdims=True), 1e-30)
