"""The sparse path: a training step whose cost after the encoder product depends on the active features, not on F.

The result is exact: a feature that does not fire on a row (and, for jump_relu, is not near its threshold) does not
contribute to the loss or the gradients of that row. Loops over rows, in chunks of their candidates, keep the memory at
the size of the parameters. Gathering all K decoder rows at once would build a [B, K, D] array and be ten times slower.

Shapes: B rows, D width of the model, F features, K candidates per row (a multiple of CHUNK), C = CHUNK.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae_jax.ops.matmul import matmul

CHUNK = 16
MOST_CANDIDATES = 1024  # per row; rows of large norm have many times the mean number
DENSEST = 1 / 16  # share of candidates above which the dense path is faster (measured on a CPU)


class Candidates(NamedTuple):
    """The features of each row that may contribute to its loss: the first `count_B` entries of `indices_BxK`."""

    indices_BxK: jax.Array
    count_B: jax.Array


def most_candidates(hidden_dim: int) -> int:
    return min(MOST_CANDIDATES, hidden_dim // 6 // CHUNK * CHUNK)


def fits(count_B: jax.Array, hidden_dim: int) -> jax.Array:
    """Whether the sparse path is exact for these numbers of candidates, and faster."""
    return (count_B.max() <= most_candidates(hidden_dim)) & (count_B.mean() <= DENSEST * hidden_dim)


def pick(values_F: jax.Array, at: Candidates | None) -> jax.Array:
    """The values of the candidates, [B, K]; without candidates, those of all features, [1, F]."""
    return values_F[None] if at is None else values_F[at.indices_BxK]


def largest(score_BxF: jax.Array, count_B: jax.Array, k: int) -> Candidates:
    """The features with the `count_B` largest scores of each row, at most k."""
    return Candidates(jax.lax.top_k(score_BxF, -(-k // CHUNK) * CHUNK)[1], count_B)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(x_BxD: jax.Array, W_encT_FxD: jax.Array, known_BxF: jax.Array, dtype: str) -> jax.Array:
    """x W_enc, given its value: the forward pass returns `known_BxF`, the backward pass gives the gradient for W_enc.

    x is data and gets no gradient.
    """
    return known_BxF


product.defvjp(
    lambda x_BxD, W_encT_FxD, known_BxF, dtype: (known_BxF, x_BxD),
    lambda dtype, x_BxD, g_BxF: (jnp.zeros_like(x_BxD), matmul(g_BxF.T, x_BxD, dtype), jnp.zeros_like(g_BxF)),
)


@jax.custom_vjp
def product_at(x_BxD: jax.Array, W_encT_FxD: jax.Array, known_BxF: jax.Array, at: Candidates) -> jax.Array:
    """x W_enc at the candidates only, [B, K], from its known value."""
    return jnp.take_along_axis(known_BxF, at.indices_BxK, axis=1)


def _product_at_backward(saved, g_BxK):
    x_BxD, known_BxF, at = saved
    g_FxD = scatter_outer(g_BxK, x_BxD, at, known_BxF.shape[1])
    return jnp.zeros_like(x_BxD), g_FxD, jnp.zeros_like(known_BxF), None


product_at.defvjp(lambda x, W, known, at: (product_at(x, W, known, at), (x, known, at)), _product_at_backward)


@jax.custom_vjp
def decode_at(f_BxK: jax.Array, W_dec_FxD: jax.Array, at: Candidates) -> jax.Array:
    """The decoder product over the candidates, Σ_K f · W_dec[candidate], [B, D]."""

    def row(f_K, indices_K, count):
        def add(sum_D, chunk):
            return sum_D + chunk(f_K) @ W_dec_FxD[chunk(indices_K)]

        return over_chunks(add, jnp.zeros(W_dec_FxD.shape[1]), count)

    return jax.lax.map(lambda args: row(*args), (f_BxK, *at))


def _decode_at_backward(saved, g_BxD):
    f_BxK, W_dec_FxD, at = saved
    return gather_dot(g_BxD, W_dec_FxD, at), scatter_outer(f_BxK, g_BxD, at, len(W_dec_FxD)), None


decode_at.defvjp(lambda f, W, at: (decode_at(f, W, at), (f, W, at)), _decode_at_backward)


def gather_dot(g_BxD: jax.Array, W_FxD: jax.Array, at: Candidates) -> jax.Array:
    """The products g · W[candidate], [B, K]; zero after the last chunk of a row."""

    def row(g_D, indices_K, count):
        def put(out_K, chunk):
            W_CxD = jax.lax.optimization_barrier(W_FxD[chunk(indices_K)])  # if fused into the product, 3 times slower
            return chunk.put(out_K, W_CxD @ g_D)

        return over_chunks(put, jnp.zeros(len(indices_K)), count)

    return jax.lax.map(lambda args: row(*args), (g_BxD, *at))


def scatter_outer(f_BxK: jax.Array, x_BxD: jax.Array, at: Candidates, hidden_dim: int) -> jax.Array:
    """Σ_B f ⊗ x, summed into the rows of the candidates, [F, D]."""

    def row(sum_FxD, args):
        f_K, x_D, indices_K, count = args

        def add(sum_FxD, chunk):
            return sum_FxD.at[chunk(indices_K)].add(chunk(f_K)[:, None] * x_D[None], unique_indices=True)

        return over_chunks(add, sum_FxD, count), None

    return jax.lax.scan(row, jnp.zeros((hidden_dim, x_BxD.shape[1])), (f_BxK, x_BxD, *at))[0]


class Chunk:
    """Reads and writes CHUNK consecutive candidates of a row."""

    def __init__(self, number: jax.Array):
        self.start = (number * CHUNK,)

    def __call__(self, values_K: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(values_K, self.start, (CHUNK,))

    def put(self, values_K: jax.Array, values_C: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(values_K, values_C, self.start)


def over_chunks(body: Callable[[jax.Array, Chunk], jax.Array], start: jax.Array, count: jax.Array) -> jax.Array:
    chunks = (count + CHUNK - 1) // CHUNK
    return jax.lax.fori_loop(0, chunks, lambda number, carry: body(carry, Chunk(number)), start)
