"""The sparse autoencoder as a Flax module, written for one member.

Shapes: B rows, D width of the model, F features, K candidates of a row. Parameters are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.kinds import KINDS
from sae_jax.matmul import matmul
from sae_jax.sparse import Candidates, decode_at, pick, product, product_at


class Setting(nnx.Variable):
    """A number that no gradient trains; members of one group may differ in it."""


class SAE(nnx.Module):
    """f = act((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec; `act` is its kind's.

    `params`: W_encT [F, D] (the encoder with a row a feature, as the decoder: its gradient is written by rows, which
    saves a sixth of a step), b_enc [F], W_dec [F, D], b_dec [D], and what the kind adds. `settings`: k and the like.
    `level` names what sets its sparsity, `k_max` is the static bound of k, `dtype` that of the large products.
    """

    W_encT: nnx.Param
    b_enc: nnx.Param
    W_dec: nnx.Param
    b_dec: nnx.Param

    def __init__(
        self,
        activation: str,
        params: dict,
        settings: dict | None = None,
        level: str = "",
        k_max: int = 0,
        dtype: str = "float32",
    ):
        self.activation, self.level, self.k_max, self.dtype = activation, level, k_max, dtype
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))
        for name, value in (settings or {}).items():
            setattr(self, name, Setting(value))

    @property
    def kind(self):
        return KINDS[self.activation](self.level)

    def pre_activations(
        self, x_BxD: jax.Array, known_BxF: jax.Array | None = None, at: Candidates | None = None
    ) -> jax.Array:
        """z_BxF, or z_BxK at each row's candidates; where x W_enc is known, it is not computed again.

        The bias is moved behind the product, which saves a matmul of the rows in the backward pass.
        """
        bias_F = self.b_enc - self.W_encT @ self.b_dec
        if at is not None:
            return product_at(x_BxD, self.W_encT[...], known_BxF, at) + pick(bias_F, at)
        if known_BxF is None:
            return self.encoder_product(x_BxD) + bias_F
        return product(x_BxD, self.W_encT[...], known_BxF, self.dtype) + bias_F

    def encoder_product(self, x_BxD: jax.Array) -> jax.Array:
        return matmul(x_BxD, self.W_encT[...].T, self.dtype)

    def encode(self, x_BxD: jax.Array) -> jax.Array:
        return self.kind.fire(self, self.pre_activations(x_BxD))

    def decode(self, f: jax.Array, at: Candidates | None = None) -> jax.Array:
        return self.decoder_product(f, self.W_dec[...], at) + self.b_dec

    def decoder_product(self, f: jax.Array, W_dec_FxD: jax.Array, at: Candidates | None = None) -> jax.Array:
        return matmul(f, W_dec_FxD, self.dtype) if at is None else decode_at(f, W_dec_FxD, at)

    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        return self.decode(self.encode(x_BxD))


def unit_rows(W_FxD: jax.Array) -> jax.Array:
    return W_FxD / jnp.maximum(jnp.linalg.norm(W_FxD, axis=1, keepdims=True), 1e-30)
