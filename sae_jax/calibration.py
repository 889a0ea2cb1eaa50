"""Held-out rows for calibration, and the last correction of L0 on them.

Every fifth held-out window is for calibration, so that its rows come from all documents. Metrics use the other windows.

Shapes: W windows, N rows, D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from harvest.model_pass import spread
from harvest.store import Split
from sae_jax.formats import Dictionary

CALIBRATION_ROWS = 2048  # at most
EVERY = 5  # one window in so many is for calibration, or fewer if these windows would have 32 times 2048 rows
MOST_TO_DRAW_FROM = 32 * CALIBRATION_ROWS
MOST_VALUES = 1 << 25  # pre-activations that are computed at once
# The tensor of each exported architecture that moves all thresholds, and its sign in z − θ. The other architectures
# keep the k largest values, so they need no correction.
THRESHOLDS = {"standard": ("b_enc", 1), "gated": ("b_gate", 1), "jumprelu": ("threshold", -1)}


def calibration_windows(split: Split) -> np.ndarray:
    """Numbers of the held-out windows for calibration; none if there are fewer than five."""
    every = max(EVERY, -(-len(split) // MOST_TO_DRAW_FROM))
    return np.arange(EVERY - 1, split.n_windows, every)


def metric_windows(split: Split) -> np.ndarray:
    """Numbers of the held-out windows that are not for calibration."""
    return np.setdiff1d(np.arange(split.n_windows), calibration_windows(split))


def spread_windows(windows_W: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of these windows, spread evenly."""
    return windows_W[spread(len(windows_W), count)]


def calibration_sample(split: Split) -> np.ndarray:
    """At most CALIBRATION_ROWS of the rows for calibration, drawn uniformly with a fixed seed, [N, D]."""
    rows_N = split.window_rows(calibration_windows(split))
    drawn = np.random.default_rng(0).choice(rows_N, min(len(rows_N), CALIBRATION_ROWS), replace=False)
    return split[np.sort(drawn)]


def with_l0(dictionary: Dictionary, raw_NxD: np.ndarray, l0: float) -> Dictionary:
    """The dictionary with all thresholds moved by one number, so that on average `l0` features fire on these rows.

    A threshold of a jumprelu dictionary never becomes negative.
    """
    if dictionary.cfg["architecture"] not in THRESHOLDS or not len(raw_NxD):
        return dictionary
    name, sign = THRESHOLDS[dictionary.cfg["architecture"]]
    raw_NxD = raw_NxD[: max(1, MOST_VALUES // dictionary.d_sae)]
    excess = np.asarray(excess_over_threshold(*nnx.split(dictionary.sae), raw_NxD)).ravel()
    fires = -round(l0 * len(raw_NxD))
    middle = np.partition(excess, (fires - 1, fires))[fires - 1 : fires + 1].mean()  # rounding then changes no firing
    tensor_F = dictionary.tensors[name] - np.float32(sign * middle)
    moved_F = np.maximum(tensor_F, 0.0) if name == "threshold" else tensor_F
    return replace(dictionary, tensors=dictionary.tensors | {name: moved_F})


@partial(jax.jit, static_argnums=0)
def excess_over_threshold(graphdef: nnx.GraphDef, weights: nnx.State, raw_NxD: jax.Array) -> jax.Array:
    """z − θ, [N, F]; features with a positive value fire."""
    sae = nnx.merge(graphdef, weights)
    z_NxF = sae.pre_activations(raw_NxD.astype(jnp.float32))
    return z_NxF - sae.threshold[None] if hasattr(sae, "threshold") else z_NxF
