"""How often features fire: summary numbers and a histogram.

Shapes: F features."""

from __future__ import annotations

import numpy as np

EDGES = np.arange(-6, 0.01, 0.25)  # edges of the histogram, in log10 of the density
FREQUENT = 0.1  # density above which a feature counts as frequent


def density_statistics(density_F: np.ndarray) -> dict[str, float]:
    """mean_activation_rate (the mean density) and high_freq_neurons (the number of frequent features)."""
    return {
        "mean_activation_rate": float(density_F.mean()),
        "high_freq_neurons": float((density_F > FREQUENT).sum()),
    }


def density_histogram(density_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(counts, EDGES): a histogram of the log10 of the density over the features that fire."""
    return np.histogram(np.log10(density_F[density_F > 0]), EDGES)
