"""The scaling of rows, and the units in which the loss measures errors.

Shapes: D width of the model.
"""

from __future__ import annotations

import numpy as np

from harvest.store import ActivationStore
from sae_jax.config import METRIC_POWERS


def normalization_of(store: ActivationStore, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(shift_D, scale_D) of the normalization `name`. A dimension that does not vary is only shifted."""
    zeros_D, ones_D = np.zeros(store.d_model), np.ones(store.d_model)
    if name == "standardize":
        return store.mean, np.where(store.std > 0, store.std, 1.0)
    if name == "mean_norm":
        return zeros_D, ones_D * store.manifest["mean_norm"] / np.sqrt(store.d_model)
    if name == "mean_square":
        return zeros_D, ones_D * np.sqrt((np.square(store.mean) + np.square(store.std)).sum())
    return zeros_D, ones_D


def metric_of(store: ActivationStore, name: str, scale_D: np.ndarray) -> np.ndarray:
    """metric_D of the loss ‖(x − x̂) · metric_D‖² of rows x that are divided by `scale_D`.

    One factor for all dimensions keeps the sum of the variances of x · metric_D equal to that of x.
    """
    std_D = np.where(store.std > 0, store.std, 1.0)
    metric_D = scale_D * std_D ** -METRIC_POWERS[name]
    variance_D = np.square(store.std / scale_D)
    return metric_D * np.sqrt(variance_D.sum() / (np.square(metric_D) * variance_D).sum())
