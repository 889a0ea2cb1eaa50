"""The sparse autoencoder as a Flax module, written for one member.

Shapes: B rows, D width of the model, F features, K candidates of a row. Parameters are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.models.registry import KINDS
from sae_jax.ops.matmul import matmul
from sae_jax.ops.sparse import Candidates, decode_at, pick, product, product_at


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

    def reconstruct(self, x_BxD: jax.Array, f_BxF: jax.Array) -> jax.Array:
        """x̂ from the features of these rows, or from others in their place."""
        return self.decode(f_BxF)

    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        return self.reconstruct(x_BxD, self.encode(x_BxD))


class RowNormalizedSAE(SAE):
    """One of rows that are normalized each by itself, by ROW_NORMS, and whose reconstruction is scaled back.

    It is what some published dictionaries need (OpenAI's of GPT-2: layer_norm). We train none.
    """

    def __init__(self, norm: str, *arguments):
        super().__init__(*arguments)
        self.norm = norm

    def encode(self, x_BxD):
        return super().encode(ROW_NORMS[self.norm](x_BxD)[0])

    def decode(self, f, at=None):
        if self.norm == CENTER:  # a row without its mean
            return super().decode(f, at)
        raise TypeError("the rows are needed to scale back: use reconstruct(x, f)")

    def reconstruct(self, x_BxD, f_BxF):
        _, scale_Bx1, shift_Bx1 = ROW_NORMS[self.norm](x_BxD)
        return super().decode(f_BxF) * scale_Bx1 + shift_Bx1


def layer_norm(x_BxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(normalized rows, what to multiply by, and to add, on the way back); as SAELens, the ε on the way in alone."""
    mean_Bx1, std_Bx1 = x_BxD.mean(-1, keepdims=True), x_BxD.std(-1, keepdims=True, ddof=1)
    return (x_BxD - mean_Bx1) / (std_Bx1 + 1e-5), std_Bx1, mean_Bx1


def constant_norm(x_BxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same for rows of norm √D."""
    scale_Bx1 = jnp.maximum(jnp.linalg.norm(x_BxD, axis=-1, keepdims=True), 1e-30) / x_BxD.shape[-1] ** 0.5
    return x_BxD / scale_Bx1, scale_Bx1, jnp.zeros_like(scale_Bx1)


def centered(x_BxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same for rows whose mean goes past the dictionary, as TransformerLens' center_writing_weights has them."""
    mean_Bx1 = x_BxD.mean(-1, keepdims=True)
    return x_BxD - mean_Bx1, jnp.ones_like(mean_Bx1), mean_Bx1


CENTER = "center"
ROW_NORMS = {
    "layer_norm": layer_norm,
    "constant_norm_rescale": constant_norm,
    CENTER: centered,
}  # SAELens' names, but one


def unit_rows(W_FxD: jax.Array) -> jax.Array:
    return W_FxD / jnp.maximum(jnp.linalg.norm(W_FxD, axis=1, keepdims=True), 1e-30)
