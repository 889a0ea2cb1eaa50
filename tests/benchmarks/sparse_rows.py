"""Rows for both sides of a comparison. Imports numpy only, because the peers' environment uses it, too."""

import numpy as np


def sparse_rows(count: int, d_model: int) -> np.ndarray:
    """Rows of unit variance: a log-normal number (24 on average) of 2D random directions, plus noise."""
    rng = np.random.default_rng(0)
    directions_GxD = rng.standard_normal((2 * d_model, d_model))
    share_Nx1 = 24 / len(directions_GxD) * rng.lognormal(-0.125, 0.5, (count, 1))
    strength_NxG = (rng.random((count, len(directions_GxD))) < share_Nx1) * rng.uniform(0.5, 2.0, (count, 1))
    x_NxD = strength_NxG @ directions_GxD
    x_NxD += 0.1 * x_NxD.std() * rng.standard_normal(x_NxD.shape)
    return ((x_NxD - x_NxD.mean(0)) / x_NxD.std(0)).astype(np.float16)
