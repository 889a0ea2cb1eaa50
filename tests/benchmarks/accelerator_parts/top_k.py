"""Ways to find the k largest values of each row, side by side: their time, and whether their mask is exact.

Each way returns the mask [B, F] of the values to keep, which is what a training step needs. On random float32 values
ties are so rare that the mask of all values from the k-th largest on is the mask of the k largest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_parts.figures import Part
from accelerator_parts.training import Sizes

from sae_jax.ops.activations import mask_of_largest

BIN, CHECKED_ROWS, REPEATS = 32, 256, 7


def by_top_k_and_scatter(z_BxF: jax.Array, k: int) -> jax.Array:
    return mask_of_largest(z_BxF, jnp.int32(k), k, split=False)


def by_top_k_and_threshold(z_BxF: jax.Array, k: int) -> jax.Array:
    # The smallest of the k values, not the last one: indexing it would make XLA sort all of the row.
    return z_BxF >= jax.lax.top_k(z_BxF, k)[0].min(1, keepdims=True)


def by_approx_max_k(z_BxF: jax.Array, k: int) -> jax.Array:
    return z_BxF >= jax.lax.approx_max_k(z_BxF, k)[0].min(1, keepdims=True)


def by_counting(z_BxF: jax.Array, k: int) -> jax.Array:
    return mask_of_largest(z_BxF, jnp.int32(k), k, split=True)


def by_bins(z_BxF: jax.Array, k: int) -> jax.Array:
    """Two levels: the k bins with the largest maxima hold the k largest values."""
    z_BxNxC = z_BxF.reshape(len(z_BxF), -1, BIN)
    best_BxK = jax.lax.top_k(z_BxNxC.max(2), k)[1]
    candidates_BxKxC = jnp.take_along_axis(z_BxNxC, best_BxK[:, :, None], axis=1)
    return z_BxF >= jax.lax.top_k(candidates_BxKxC.reshape(len(z_BxF), -1), k)[0].min(1, keepdims=True)


WAYS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "top_k, mask by scatter (the step's)": by_top_k_and_scatter,
    "top_k, mask by threshold": by_top_k_and_threshold,
    "approx_max_k": by_approx_max_k,
    "counting, for features on several devices": by_counting,
    f"two levels, bins of {BIN}": by_bins,
}


def measure_top_k(part: Part, sizes: Sizes) -> None:
    for width in sizes.widths:
        z_BxF = jax.random.normal(jax.random.key(0), (sizes.batch, width))
        checked_NxF = np.asarray(z_BxF[:CHECKED_ROWS])
        threshold_Nx1 = np.partition(checked_NxF, -sizes.k, axis=1)[:, [-sizes.k]]
        for name, way in WAYS.items():

            def way_of(z_BxF=z_BxF, way=way, expected_NxF=checked_NxF >= threshold_Nx1) -> dict:
                compiled = jax.jit(way, static_argnums=1)
                exact_N = (np.asarray(compiled(z_BxF, sizes.k)[:CHECKED_ROWS]) == expected_NxF).all(1)
                seconds = []
                for _ in range(REPEATS):
                    began = time.perf_counter()
                    compiled(z_BxF, sizes.k).block_until_ready()
                    seconds.append(time.perf_counter() - began)
                return {"seconds": statistics.median(seconds), "share_of_exact_rows": float(exact_N.mean())}

            part.measure({"way": name, "rows": sizes.batch, "F": width, "k": sizes.k}, way_of)
