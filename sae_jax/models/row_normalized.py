"""SAEs that normalize every activation row by itself, as some published ones do.

Shapes: B rows, D width of the model, F features.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp

from sae_jax.models.base import SAE


class RowNormalized(SAE):
    """An SAE that normalizes each row by one of ROW_NORMS and scales its reconstruction back.

    Some published SAEs need it, such as OpenAI's for GPT-2 (layer_norm). This project trains none.
    """

    norm: str

    def encode(self, x_BxD):
        return super().encode(ROW_NORMS[self.norm](x_BxD)[0])

    def decode(self, f, at=None):
        if self.norm == CENTER:  # gives the row without its mean
            return super().decode(f, at)
        raise TypeError("decode cannot scale back without the rows: call reconstruct(x, f) instead")

    def reconstruct(self, x_BxD, f_BxF):
        _, scale_Bx1, shift_Bx1 = ROW_NORMS[self.norm](x_BxD)
        return super().decode(f_BxF) * scale_Bx1 + shift_Bx1


def layer_norm(x_BxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(normalized rows, scale and shift of the reconstruction). As in SAELens, only the normalization has an ε."""
    mean_Bx1, std_Bx1 = x_BxD.mean(-1, keepdims=True), x_BxD.std(-1, keepdims=True, ddof=1)
    return (x_BxD - mean_Bx1) / (std_Bx1 + 1e-5), std_Bx1, mean_Bx1


def constant_norm(x_BxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(rows scaled to norm √D, scale and shift of the reconstruction)."""
    scale_Bx1 = jnp.maximum(jnp.linalg.norm(x_BxD, axis=-1, keepdims=True), 1e-30) / x_BxD.shape[-1] ** 0.5
    return x_BxD / scale_Bx1, scale_Bx1, jnp.zeros_like(scale_Bx1)


def centered(x_BxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(rows minus their mean, scale and shift of the reconstruction), for TransformerLens' center_writing_weights."""
    mean_Bx1 = x_BxD.mean(-1, keepdims=True)
    return x_BxD - mean_Bx1, jnp.ones_like(mean_Bx1), mean_Bx1


CENTER = "center"
ROW_NORMS = {"layer_norm": layer_norm, "constant_norm_rescale": constant_norm, CENTER: centered}  # by SAELens' names


@cache
def row_normalized(kind: type[SAE], norm: str) -> type[SAE]:
    """The subclass of `kind` that normalizes rows by `norm`."""
    return type(f"RowNormalized{kind.__name__}", (RowNormalized, kind), {"norm": norm})
