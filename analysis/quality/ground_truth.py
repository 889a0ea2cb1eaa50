"""How well a dictionary recovers known features, from which harvest/synthetic.py generates rows.

Shapes: G true features, F features of the dictionary, D width, N held-out rows, P pairs of a true and a found feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from analysis.geometry import unit
from harvest.errors import InputError
from harvest.synthetic import Truth

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class GroundTruth:
    """Scores between 0 and 1. A dictionary that has every true feature scores 1.

    mean_max_cosine: mean over true features of the largest |cos| between the true direction and any decoder row.
    mcc: mean |cos| under the best one-to-one matching, over its `pairs` = min(F, G) (arXiv 2505.20254).
    f1, precision, recall: of a matched feature as a detector of its true feature on held-out rows; means over the pairs
    whose true feature fires there. A feature that never fires, or never fires correctly, counts as 0.
    """

    mean_max_cosine: float
    mcc: float
    f1: float
    precision: float
    recall: float
    pairs: int


def compare(decoder_FxD: np.ndarray, features_held_out_NxF: np.ndarray, truth: Truth) -> GroundTruth:
    """Compare a dictionary with the true features. Its decoder must be in the units of raw activations, as exported.

    Features only need to be zero or not, so booleans work, too. Rows are read in slices, so memory maps work, too.
    Raises InputError if the shapes do not fit the truth.
    """
    (_, d), rows = truth.directions_GxD.shape, len(truth.fired)
    expected = (rows, len(decoder_FxD))
    if decoder_FxD.shape[1:] != (d,) or features_held_out_NxF.shape != expected:
        raise InputError(
            f"features_held_out must have shape [rows, F] = {list(expected)} and the decoder [F, d] = "
            f"{[len(decoder_FxD), d]}, not {list(features_held_out_NxF.shape)} and {list(decoder_FxD.shape)}"
        )
    cosine_GxF = np.abs(unit(truth.directions_GxD) @ unit(decoder_FxD).T)
    true_P, found_P = linear_sum_assignment(cosine_GxF, maximize=True)
    both_P, fires_P, found_fires_P = (np.zeros(len(true_P), np.int64) for _ in range(3))
    for start in range(0, rows, CHUNK_ROWS):
        found_NxP = np.asarray(features_held_out_NxF[start : start + CHUNK_ROWS])[:, found_P] != 0
        true_NxP = truth.fires(start, start + CHUNK_ROWS)[:, true_P]
        both_P += (found_NxP & true_NxP).sum(0)
        fires_P += true_NxP.sum(0)
        found_fires_P += found_NxP.sum(0)
    there_P = fires_P > 0

    def mean_share(part_P: np.ndarray, whole_P: np.ndarray) -> float:
        return float((part_P / np.maximum(whole_P, 1))[there_P].mean())

    return GroundTruth(
        mean_max_cosine=float(cosine_GxF.max(1).mean()),
        mcc=float(cosine_GxF[true_P, found_P].mean()),
        f1=mean_share(2 * both_P, fires_P + found_fires_P),
        precision=mean_share(both_P, found_fires_P),
        recall=mean_share(both_P, fires_P),
        pairs=len(true_P),
    )
