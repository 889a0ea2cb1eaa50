"""Measures of how specialized a feature is on some labels, from how often it fires on the rows of each label.

Shapes: F features, L labels, S shuffles.
"""

from __future__ import annotations

import numpy as np

NO_LABEL = "none"
NEAREST, ALIKE = 100, 1000  # features that are pooled to estimate the width of a null, and its shape


def mutual_information(count_FxL: np.ndarray, rows_L: np.ndarray) -> np.ndarray:
    """Mutual information of firing and a row's label, in bits [F], corrected by Miller and Madow (1955)."""
    rows, seen_L = rows_L.sum(), rows_L > 0
    p_L, fires_FxL = rows_L[seen_L] / rows, count_FxL[:, seen_L] / rows
    information_F = np.zeros(len(count_FxL))
    for joint_FxL in (fires_FxL, p_L - fires_FxL):
        independent_FxL = joint_FxL.sum(1, keepdims=True) * p_L
        with np.errstate(divide="ignore", invalid="ignore"):
            information_F += np.where(joint_FxL > 0, joint_FxL * np.log2(joint_FxL / independent_FxL), 0).sum(1)
    return information_F - (seen_L.sum() - 1) / (2 * rows * np.log(2))


def specialization(count_FxL: np.ndarray, rows_L: np.ndarray) -> np.ndarray:
    """1 − H(label | the feature fires) / log2 L, [F], computed as if all labels had the same number of rows.

    0 means that a feature fires equally often on all labels, 1 that it fires on one label only. It is NaN for a feature
    that never fires. The entropy is corrected by Miller and Madow (1955): + (labels seen − 1) / (2 · firings).
    """
    seen_L = rows_L > 0
    rate_FxL = count_FxL[:, seen_L] / rows_L[seen_L]
    firings_F, total_F = count_FxL.sum(1), rate_FxL.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_FxL = rate_FxL / total_F[:, None]
        entropy_F = -np.where(p_FxL > 0, p_FxL * np.log2(p_FxL), 0).sum(1)
        entropy_F = entropy_F + ((p_FxL > 0).sum(1) - 1) / (2 * firings_F * np.log(2))
    return np.where(firings_F > 0, 1 - entropy_F / np.log2(max(2, seen_L.sum())), np.nan)


def over_chance(score_SxF: np.ndarray) -> np.ndarray:
    """A score minus its mean over shuffles, [F]. Row 0 is the score with true labels, the others with shuffled ones."""
    return score_SxF[0] - score_SxF[1:].mean(0)


def p_values(score_SxF: np.ndarray, effective_F: np.ndarray) -> np.ndarray:
    """p-values [F]: how often shuffled labels give a feature as high a score over chance.

    The few shuffles of one feature do not show the tail of its null distribution, so the nulls of features are pooled:
    - The width of the null is about inverse to `effective_F`, the number of shuffled units over which a feature's
      firings are spread. Scores are therefore multiplied by it.
    - The remaining width is estimated from the NEAREST features by `effective_F`.
    - The shape, in units of that width, is pooled over the ALIKE nearest features. With NEAREST alone, no p-value would
      be below 1 / (1 + S · NEAREST), which is too large to find a few specialists among many features.
    - The difference of a score from the mean of S shuffles is √(1 + 1/S) times as wide as the scores, that of a shuffle
      from the same mean √(1 − 1/S) times. Both are divided by these factors.
    """
    shuffles, features = len(score_SxF) - 1, len(effective_F)
    score_SxF = score_SxF * effective_F
    order_F, rank_F = np.argsort(effective_F, kind="stable"), np.arange(features)

    def around(width: int) -> tuple[np.ndarray, int]:
        width = min(features, width)
        return np.clip(rank_F - width // 2, 0, features - width), width

    observed_F = over_chance(score_SxF)[order_F] / np.sqrt(1 + 1 / shuffles)
    null_SxF = (score_SxF[1:] - score_SxF[1:].mean(0))[:, order_F] / np.sqrt(1 - 1 / shuffles)
    summed_F = np.concatenate([[0], np.square(null_SxF).mean(0).cumsum()])
    first_F, width = around(NEAREST)
    size_F = np.sqrt(np.maximum(summed_F[first_F + width] - summed_F[first_F], 1e-30) / width)
    observed_F, null_SxF = observed_F / size_F, null_SxF / size_F
    first_F, width = around(ALIKE)
    p_F = np.empty(features)
    for rank, first in enumerate(first_F):
        null = null_SxF[:, first : first + width]
        p_F[order_F[rank]] = (1 + (null >= observed_F[rank]).sum()) / (1 + null.size)
    return p_F
