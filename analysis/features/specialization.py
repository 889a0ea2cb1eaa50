"""How far a feature is specialized on some labels, from how often it fires on the rows of each.

Shapes: F features, L labels, S shuffles.
"""

from __future__ import annotations

import numpy as np

NO_LABEL = "none"
NEAREST, ALIKE = 100, 1000  # features that share the size of a null, and its shape


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


def p_values(score_SxF: np.ndarray, effective_F: np.ndarray) -> np.ndarray:
    """Of each feature, [F]: how often labels dealt anew give so high a score over the feature's own mean.

    Few shuffles of one feature give no tail, so the null is pooled. How wide it is depends on over how many units that
    are dealt a feature's firings are spread, `effective_F`, and not on how often it fires: it is about inverse to that.
    So scores are taken times it, their size over the NEAREST features by it, and their shape over the ALIKE nearest, in
    units of that size. (Over NEAREST alone no p-value is under 1 / (1 + S · NEAREST),
    too much for a few specialists among many features.) What a score, and a shuffle, is over the mean of S shuffles
    varies by √(1 + 1/S), and √(1 − 1/S), of a score: they are scaled alike.
    """
    shuffles, features = len(score_SxF) - 1, len(effective_F)
    score_SxF = score_SxF * effective_F
    order_F, rank_F = np.argsort(effective_F, kind="stable"), np.arange(features)

    def around(width: int) -> tuple[np.ndarray, int]:
        width = min(features, width)
        return np.clip(rank_F - width // 2, 0, features - width), width

    found_F = over_chance(score_SxF)[order_F] / np.sqrt(1 + 1 / shuffles)
    null_SxF = (score_SxF[1:] - score_SxF[1:].mean(0))[:, order_F] / np.sqrt(1 - 1 / shuffles)
    summed_F = np.concatenate([[0], np.square(null_SxF).mean(0).cumsum()])
    first_F, width = around(NEAREST)
    size_F = np.sqrt(np.maximum(summed_F[first_F + width] - summed_F[first_F], 1e-30) / width)
    found_F, null_SxF = found_F / size_F, null_SxF / size_F
    first_F, width = around(ALIKE)
    p_F = np.empty(features)
    for rank, first in enumerate(first_F):
        null = null_SxF[:, first : first + width]
        p_F[order_F[rank]] = (1 + (null >= found_F[rank]).sum()) / (1 + null.size)
    return p_F
