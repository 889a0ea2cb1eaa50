"""Held-out metrics of exported SAEs on raw activations.

Shapes: N rows of a chunk, C parts of a chunk, D width of the model, F features. Metrics of a row and the sums of
squared errors over 64 rows are in float32. All further sums are in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from harvest.store import Split
from sae_jax.models.base import SAE

CHUNK_ROWS, PARTIAL_ROWS = 4096, 64  # rows read at once; rows summed in float32


class Evaluation(NamedTuple):
    metrics: dict[str, float]
    density_F: np.ndarray  # share of rows on which each feature fires


class RowMeasures(NamedTuple):
    squared_error_CxD: jax.Array
    l0_N: jax.Array
    l1_N: jax.Array
    cosine_N: jax.Array
    firings_F: jax.Array


def measure_rows(graphdef: nnx.GraphDef, weights: nnx.State, x_NxD: jax.Array, is_row_N: jax.Array) -> RowMeasures:
    sae = nnx.merge(graphdef, weights)
    f_NxF = sae.encode(x_NxD)
    reconstruction_NxD = sae.reconstruct(x_NxD, f_NxF)
    squared_error_NxD = jnp.square(x_NxD - reconstruction_NxD) * is_row_N[:, None]
    norms_N = jnp.linalg.norm(x_NxD, axis=1) * jnp.linalg.norm(reconstruction_NxD, axis=1)
    return RowMeasures(
        squared_error_CxD=squared_error_NxD.reshape(-1, PARTIAL_ROWS, x_NxD.shape[1]).sum(1),
        l0_N=(f_NxF != 0).sum(1),
        l1_N=jnp.abs(f_NxF) @ jnp.linalg.norm(sae.W_dec[...], axis=1),
        cosine_N=(x_NxD * reconstruction_NxD).sum(1) / jnp.maximum(norms_N, 1e-30),
        firings_F=((f_NxF != 0) & is_row_N[:, None]).sum(0),
    )


def evaluate(
    saes: dict[str, SAE],
    split: Split,
    mean_D: np.ndarray,
    windows_W: np.ndarray | None = None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Evaluation]:
    """The metrics of all SAEs on the rows of a split, or of some of its windows. The rows are read once.

    explained_variance = 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²); mse = E Σ_D (x − x̂)²; l0 = E #(f ≠ 0); sparsity =
    1 − l0/F; l1 = E Σ |f|·‖W_dec‖, in units of x; cosine = E cos(x, x̂); dead_fraction = share of features that fire
    on no row; explained_variance_z = 1 − mean_D (E (x − x̂)² / Var x), which weights all dimensions equally. The
    variance is summed around `mean_D`, any vector near the mean, which only reduces rounding errors.
    """
    measure = jax.jit(measure_rows, static_argnums=0)
    parts = {name: nnx.split(sae) for name, sae in saes.items()}
    sums: dict[str, dict[str, Any]] = {name: dict.fromkeys(RowMeasures._fields, 0.0) for name in saes}
    offset_sum_D, offset_square_D = np.zeros_like(mean_D), np.zeros_like(mean_D)
    rows_N = np.arange(len(split)) if windows_W is None else split.window_rows(windows_W)
    for start in range(0, len(rows_N), CHUNK_ROWS):
        on_rows(start, len(rows_N))
        raw_NxD = split[rows_N[start : start + CHUNK_ROWS]]
        n = len(raw_NxD)
        offset_NxD = raw_NxD.astype(np.float64) - mean_D
        offset_sum_D += offset_NxD.sum(0)
        offset_square_D += np.square(offset_NxD).sum(0)
        x_NxD = np.zeros((CHUNK_ROWS, raw_NxD.shape[1]), np.float32)  # one shape, compiled once
        x_NxD[:n] = raw_NxD
        for name, (graphdef, weights) in parts.items():
            rows = measure(graphdef, weights, x_NxD, np.arange(CHUNK_ROWS) < n)
            for field, values in rows._asdict().items():
                values = np.asarray(values, np.float64)
                if field.endswith("_N"):
                    values = values[:n].sum()
                sums[name][field] += values.sum(0) if field.endswith("_CxD") else values
    total = len(rows_N)
    on_rows(total, total)
    variance_D = offset_square_D / total - np.square(offset_sum_D / total)
    return {name: summarize(sums[name], total, variance_D) for name in saes}


def summarize(sums: dict, rows: int, variance_D: np.ndarray) -> Evaluation:
    density_F = np.asarray(sums["firings_F"]) / rows
    mse_D, l0, varies_D = sums["squared_error_CxD"] / rows, sums["l0_N"] / rows, variance_D > 0
    metrics = {
        "explained_variance": 1 - mse_D.sum() / variance_D.sum(),
        "explained_variance_z": 1 - (mse_D[varies_D] / variance_D[varies_D]).mean(),
        "mse": mse_D.sum(),
        "l0": l0,
        "sparsity": 1 - l0 / len(density_F),
        "l1": sums["l1_N"] / rows,
        "cosine": sums["cosine_N"] / rows,
        "dead_fraction": float((density_F == 0).mean()),
    }
    return Evaluation({name: float(value) for name, value in metrics.items()}, density_F)
