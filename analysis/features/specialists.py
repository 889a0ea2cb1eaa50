"""The features of a dictionary that are more specialized on a label than shuffled labels would make them.

Shapes: F features.
"""

from __future__ import annotations

import numpy as np

from analysis.features.specialization import NO_LABEL, over_chance
from analysis.features.statistics import Features

MIN_FIRINGS = 100  # firings that a feature needs for its specialization, or its share of one token, to be measured
SPECIAL = 0.05  # specialization over chance from which on a page names the label
RATE = 0.05  # false discovery rate (Benjamini and Hochberg 1995)


def most_special(features: Features) -> tuple[list[str], np.ndarray]:
    """(label, specialization over chance), [F] each, from the set of labels on which a feature is most specialized.

    Without labels, as in windows of one row without a text, the specialization is 0.
    """
    names = list(features.labels)
    if not names:
        return [NO_LABEL] * len(features.density_F), np.zeros(len(features.density_F))
    score_SxF = np.stack([over_chance(np.array(features.label_score[name][1])) for name in names])
    score_SxF = np.where(np.isnan(score_SxF), -np.inf, score_SxF)
    best_F, label_F = score_SxF.argmax(0), np.full(score_SxF.shape[1], NO_LABEL, object)
    for number, name in enumerate(names):
        most_N = np.flatnonzero((best_F == number) & features.alive_F)
        rate_NxL = features.label_count[name][most_N] / np.maximum(features.label_rows[name], 1)
        label_F[most_N] = np.array([f"{name}: {label}" for label in features.labels[name]], object)[rate_NxL.argmax(1)]
    return label_F.tolist(), np.where(features.alive_F, score_SxF.max(0), 0.0)


def judged(features: Features) -> np.ndarray:
    """Numbers of the features that fire often enough for their specialization to be measured."""
    return np.flatnonzero(features.density_F * features.rows >= MIN_FIRINGS)
