"""How far a feature is specialized on some labels, from how often it fires on the rows of each.

Shapes: F features, L labels, S shuffles.
"""

from __future__ import annotations

import numpy as np


def mutual_information(count_FxL: np.ndarray, rows_L: np.ndarray) -> np.ndarray:
    """Between whether a feature fires and the label of a row, in bits, [F]; corrected by Miller and Madow (1955)."""
    rows, seen_L = rows_L.sum(), rows_L > 0
    p_L, fires_FxL = rows_L[seen_L] / rows, count_FxL[:, seen_L] / rows
    information_F = np.zeros(len(count_FxL))
    for joint_FxL in (fires_FxL, p_L - fires_FxL):
        independent_FxL = joint_FxL.sum(1, keepdims=True) * p_L
        with np.errstate(divide="ignore", invalid="ignore"):
            information_F += np.where(joint_FxL > 0, joint_FxL * np.log2(joint_FxL / independent_FxL), 0).sum(1)
    return information_F - (seen_L.sum() - 1) / (2 * rows * np.log(2))


def specialization(count_FxL: np.ndarray, rows_L: np.ndarray) -> np.ndarray:
    """1 − H(label | it fires) / log2 L, [F], as if all labels had as many rows: 0 fires evenly, 1 on one label alone.

    The entropy is corrected by Miller and Madow (1955): + (labels seen − 1) / (2 · firings). NaN where it never fires.
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
    """A score less its mean over the shuffles, [F]; row 0 is the score, the others those of labels dealt anew."""
    return score_SxF[0] - score_SxF[1:].mean(0)


def p_values(score_SxF: np.ndarray, counted_F: np.ndarray) -> np.ndarray:
    """Of each feature, [F]: how often a shuffle gives a feature that fires about as often so high a score.

    The null is pooled over the shuffles of the features nearest in frequency (`counted_F` firings).
    """
    order_F = np.argsort(counted_F, kind="stable")
    null_FxS = score_SxF[1:, order_F].T
    width = min(len(order_F), 50)
    p_F = np.empty(len(order_F))
    for rank, feature in enumerate(order_F):
        first = min(max(0, rank - width // 2), len(order_F) - width)
        null = null_FxS[first : first + width]
        p_F[feature] = (1 + (null >= score_SxF[0, feature]).sum()) / (1 + null.size)
    return p_F
