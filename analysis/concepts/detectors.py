"""Which feature fires on a concept? Chosen, given its threshold and scored on three different sets of passages.

A feature's value on a passage is its largest over the positions that count. Thousands are tried: on the passages that
the best was chosen by, a chance feature looks like a find. So each feature is chosen on one set, gets its threshold on
a second and every figure that is reported on a third; p-values of all that are reported, over all dictionaries, are
by a permutation test on the third and corrected together (Benjamini and Hochberg 1995).

Shapes: N passages (P of the concept, Q others), F features, C candidates, S permutations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control, rankdata

from analysis.concepts.max_pooling import MaxPooled
from analysis.stats import Interval, auroc_interval

CHOOSING, THRESHOLD, SCORING = range(3)
DEAL = (CHOOSING, SCORING, THRESHOLD, CHOOSING, SCORING)  # passages to sets, in turn
ENOUGH = 6  # passages of the concept: with fewer nothing is called found
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Detector:
    """How well "value > threshold" tells the concept, and AUROC the value itself; all but the threshold on SCORING."""

    auroc: float
    auroc_interval: Interval | None  # 95%, over passages; None: there are too few
    auroc_without_phrase: float | None  # the phrase's own tokens left out of both sides; None: nothing else there
    threshold: float  # of the best F1 on THRESHOLD
    precision: float | None  # None: it fires on none
    coverage: float  # recall
    difference: float  # of the means
    p_value: float  # one-sided


@dataclass(frozen=True)
class FoundFeature:
    member: str
    feature: int
    chosen_by: float  # AUROC on CHOOSING
    detector: Detector
    q_value: float  # the smallest false discovery rate at which it passes
    passes: bool


@dataclass(frozen=True)
class FindFeature:
    """`features` are the first `top` of all dictionaries and each one's first, best on CHOOSING first."""

    features: list[FoundFeature]
    top: int  # of these, the first of all dictionaries
    baselines: dict[str, Detector]  # difference in means, by where it was read
    tried: dict[str, int]  # features of each dictionary
    sets: dict[str, dict[str, int]]  # passages of the concept and others in each set

    @property
    def best_of_members(self) -> dict[str, FoundFeature]:
        """The best of all first."""
        best: dict[str, FoundFeature] = {}
        for found in self.features:
            best.setdefault(found.member, found)
        return best


@dataclass(frozen=True)
class _Candidate:
    member: str
    feature: int
    auroc: float
    separation: float  # difference of the means in standard deviations: breaks ties
    values: MaxPooled  # its own column, copied: what it is from is let go


def find_detectors(
    pooled: Iterable[tuple[str, MaxPooled]],
    baselines: Mapping[str, MaxPooled],
    is_concept_N: np.ndarray,
    set_N: np.ndarray,
    top: int = 10,
    fdr: float = 0.05,
    seed: int = 0,
) -> FindFeature:
    """`pooled` is read one dictionary at a time, `set_N` is of `deal`. A baseline has one column."""
    tried, candidates = {}, []
    for member, of in pooled:
        tried[member] = of.whole_NxF.shape[1]
        candidates += _best(member, of, is_concept_N, set_N == CHOOSING, top)
    candidates.sort(key=lambda candidate: (-candidate.auroc, -candidate.separation))
    firsts = {candidate.member: i for i, candidate in reversed(list(enumerate(candidates)))}
    top = min(top, len(candidates))
    reported = [candidates[i] for i in sorted({*range(top), *firsts.values()})]

    rng = np.random.default_rng(seed)
    judged = judge([candidate.values for candidate in reported], is_concept_N, set_N, fdr, rng)
    q_C = false_discovery_control([detector.p_value for detector in judged])
    passes_C = (q_C <= fdr) & (is_concept_N.sum() >= ENOUGH)
    features = [
        FoundFeature(candidate.member, candidate.feature, candidate.auroc, detector, float(q), bool(passes))
        for candidate, detector, q, passes in zip(reported, judged, q_C, passes_C, strict=True)
    ]
    beside = dict(zip(baselines, judge(list(baselines.values()), is_concept_N, set_N, fdr, rng), strict=True))
    sides = {"concept": is_concept_N, "others": ~is_concept_N}
    sets = {
        name: {side: int((is_side_N & (set_N == number)).sum()) for side, is_side_N in sides.items()}
        for number, name in enumerate(("choosing", "threshold", "scoring"))
    }
    return FindFeature(features, top, beside, tried, sets)


def deal(is_concept_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """CHOOSING (two fifths), THRESHOLD (one) or SCORING (two) for each passage, the same shares of either side."""
    rng, set_N = np.random.default_rng(seed), np.empty(len(is_concept_N), np.int64)
    for side in (True, False):
        rows = rng.permutation(np.flatnonzero(is_concept_N == side))
        set_N[rows] = np.resize(DEAL, len(rows))
    return set_N


def auroc(values_NxF: np.ndarray, is_concept_N: np.ndarray) -> np.ndarray:
    """Of each column, [F], or of one: how often a passage of the concept has more than another, ties counting half."""
    p, q = is_concept_N.sum(), (~is_concept_N).sum()
    return (rankdata(values_NxF, axis=0)[is_concept_N].sum(0) - p * (p + 1) / 2) / (p * q)


def best_threshold(values_N: np.ndarray, is_concept_N: np.ndarray) -> float:
    """The threshold of the best F1, half-way between two values; one that all pass is none."""
    values, counts = np.unique(values_N, return_counts=True)
    if len(values) == 1:
        return float(values[0])
    concept = np.array([is_concept_N[values_N == value].sum() for value in values])
    fires, right = counts[::-1].cumsum()[:-1], concept[::-1].cumsum()[:-1]  # over each threshold, the highest first
    f1 = 2 * right / (fires + is_concept_N.sum())
    return float(((values[1:] + values[:-1]) / 2)[::-1][f1.argmax()])


def permutation_test(
    values_NxC: np.ndarray, is_concept_N: np.ndarray, permutations: int, rng: np.random.Generator
) -> np.ndarray:
    """One-sided p-values [C] of the rank sum (Mann and Whitney's U) under labels dealt anew, (1 + as large) / (1 + S).

    Not by the normal approximation: with many zeros tied and few passages that is far too small in the tail.
    """
    ranks_NxC = rankdata(values_NxC, axis=0)
    observed_C, p = ranks_NxC[is_concept_N].sum(0), int(is_concept_N.sum())
    as_large_C = np.zeros(values_NxC.shape[1], np.int64)
    for start in range(0, permutations, 1000):
        count = min(1000, permutations - start)
        drawn_SxP = rng.random((count, len(values_NxC))).argpartition(p - 1, axis=1)[:, :p]
        dealt_SxN = np.zeros((count, len(values_NxC)))
        np.put_along_axis(dealt_SxN, drawn_SxP, 1.0, axis=1)
        as_large_C += (dealt_SxN @ ranks_NxC >= observed_C - 1e-6).sum(0)
    return (1 + as_large_C) / (1 + permutations)


def judge(
    columns: list[MaxPooled], is_concept_N: np.ndarray, set_N: np.ndarray, fdr: float, rng: np.random.Generator
) -> list[Detector]:
    """Of features (one column each), with as many permutations that the smallest p-value passes among them at `fdr`."""
    if not columns:
        return []
    is_threshold_N, is_concept_M = set_N == THRESHOLD, is_concept_N[set_N == SCORING]
    whole_MxC = np.concatenate([of.whole_NxF[set_N == SCORING] for of in columns], 1)
    p_C = permutation_test(whole_MxC, is_concept_M, max(PERMUTATIONS, int(2 * len(columns) / fdr)), rng)
    detectors = []
    for of, whole_M, p_value in zip(columns, whole_MxC.T, p_C, strict=True):
        threshold = best_threshold(of.whole_NxF[is_threshold_N, 0], is_concept_N[is_threshold_N])
        concept_P, others_Q = whole_M[is_concept_M], whole_M[~is_concept_M]
        wins_PxQ = (concept_P[:, None] > others_Q) + 0.5 * (concept_P[:, None] == others_Q)
        hits, alarms = int((concept_P > threshold).sum()), int((others_Q > threshold).sum())
        rest_M = of.rest_NxF[set_N == SCORING, 0]
        there_M = np.isfinite(rest_M)
        both_sides = 0 < is_concept_M[there_M].sum() < there_M.sum()
        detectors.append(
            Detector(
                auroc=float(wins_PxQ.mean()),
                auroc_interval=auroc_interval(wins_PxQ),
                auroc_without_phrase=float(auroc(rest_M[there_M], is_concept_M[there_M])) if both_sides else None,
                threshold=threshold,
                precision=hits / (hits + alarms) if hits + alarms else None,
                coverage=hits / len(concept_P),
                difference=float(concept_P.mean() - others_Q.mean()),
                p_value=float(p_value),
            )
        )
    return detectors


def _best(member: str, of: MaxPooled, is_concept_N: np.ndarray, among_N: np.ndarray, top: int) -> list[_Candidate]:
    values_MxF, is_concept_M = of.whole_NxF[among_N], is_concept_N[among_N]
    auroc_F = auroc(values_MxF, is_concept_M)
    difference_F = values_MxF[is_concept_M].mean(0) - values_MxF[~is_concept_M].mean(0)
    separation_F = difference_F / np.maximum(values_MxF.std(0), 1e-30)
    return [
        _Candidate(member, f, float(auroc_F[f]), float(separation_F[f]), MaxPooled(*(v_NxF[:, [f]] for v_NxF in of)))
        for f in np.lexsort((-separation_F, -auroc_F))[:top].tolist()
    ]
