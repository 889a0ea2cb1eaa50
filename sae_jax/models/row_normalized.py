"""Dictionaries that normalize every row by itself, as some published ones do.

Shapes: B rows, D width of the model, F features.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp

from sae_jax.models.base import SAE


class RowNormalized(SAE):
    """A dictionary that normalizes each row by itself, by one of ROW_NORMS, and scales its reconstruction back.

    Some published dictionaries need it (OpenAI's of GPT-2: layer_norm). None is trained here.
    """

    norm: str

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


@cache
def row_normalized(kind: type[SAE], norm: str) -> type[SAE]:
    """The same kind of dictionary, for rows that are normalized by `norm`."""
    return type(f"RowNormalized{kind.__name__}", (RowNormalized, kind), {"norm": norm})
