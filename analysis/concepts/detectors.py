"""Features that detect a concept: chosen, given a threshold and scored on three different sets of passages.

A feature's value on a passage is its largest activation over the passage's tokens. Because thousands of features are
tried, the best one looks good by chance on the passages that it was chosen by. Features are therefore chosen on one
set of passages (CHOOSING), get their threshold on a second (THRESHOLD), and get all reported numbers on a third
(SCORING). The p-values are from a permutation test on SCORING, and are corrected together for all reported features of
all dictionaries (Benjamini and Hochberg 1995).

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
TURNS = (CHOOSING, SCORING, THRESHOLD, CHOOSING, SCORING)  # the sets that shuffled passages are assigned to, in turn
ENOUGH = 6  # passages of the concept that are needed: with fewer, no feature passes
PERMUTATIONS = 10_000
PHRASE_ONLY = 0.25  # see `FoundFeature.needs_phrase`


@dataclass(frozen=True)
class Detector:
    """How well a value separates passages of the concept from others. All but the threshold is measured on SCORING."""

    auroc: float
    auroc_interval: Interval | None  # 95% over passages; None if there are too few
    auroc_without_phrase: float | None  # without the tokens of the phrase; None if no others are left
    threshold: float  # with the best F1 on THRESHOLD
    precision: float | None  # precision of "value > threshold"; None if no passage is above it
    coverage: float  # recall of "value > threshold"
    difference: float  # mean on the concept's passages minus mean on the others
    p_value: float  # one-sided


@dataclass(frozen=True)
class FoundFeature:
    member: str
    feature: int
    chosen_by: float  # AUROC on CHOOSING
    detector: Detector
    q_value: float  # the smallest false discovery rate at which the feature passes
    passes: bool

    @property
    def needs_phrase(self) -> bool:
        """Return whether it passes, with at most PHRASE_ONLY of its AUROC over chance left without the phrase."""
        without = self.detector.auroc_without_phrase
        return self.passes and without is not None and without - 0.5 <= PHRASE_ONLY * (self.detector.auroc - 0.5)


@dataclass(frozen=True)
class FindFeature:
    """The result of a search. `features` are the `top` best of all dictionaries and the best of each dictionary.

    They are ordered by their AUROC on CHOOSING, best first.
    """

    features: list[FoundFeature]
    top: int  # how many of `features`, from the first on, are the best of all dictionaries
    baselines: dict[str, Detector]  # {hook name: the difference in means as a detector}
    tried: dict[str, int]  # number of features of each dictionary
    sets: dict[str, dict[str, int]]  # number of passages of the concept and of others in each set

    @property
    def best_of_members(self) -> dict[str, FoundFeature]:
        """The best feature of each dictionary, by the dictionary's name, best first."""
        best: dict[str, FoundFeature] = {}
        for feature in self.features:
            best.setdefault(feature.member, feature)
        return best


@dataclass(frozen=True)
class _Candidate:
    member: str
    feature: int
    auroc: float
    separation: float  # difference of the means in standard deviations, to break ties
    values: MaxPooled  # a copy of the feature's column, so that the dictionary's whole table can be freed


def find_detectors(
    pooled: Iterable[tuple[str, MaxPooled]],
    baselines: Mapping[str, MaxPooled],
    is_concept_N: np.ndarray,
    set_N: np.ndarray,
    top: int = 10,
    fdr: float = 0.05,
    seed: int = 0,
) -> FindFeature:
    """Choose, threshold and score features of all dictionaries.

    `pooled` yields (name, values) of one dictionary at a time. A baseline has one column. `set_N` is the set of each
    passage, from `split_passages`.
    """
    tried, candidates = {}, []
    for member, values in pooled:
        tried[member] = values.whole_NxF.shape[1]
        candidates += _best(member, values, is_concept_N, set_N == CHOOSING, top)
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


def split_passages(is_concept_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """A random assignment of passages to CHOOSING (2/5), THRESHOLD (1/5) and SCORING (2/5), [N].

    The shares are the same for passages of the concept and for others.
    """
    rng, set_N = np.random.default_rng(seed), np.empty(len(is_concept_N), np.int64)
    for side in (True, False):
        rows = rng.permutation(np.flatnonzero(is_concept_N == side))
        set_N[rows] = np.resize(TURNS, len(rows))
    return set_N


def auroc(values_NxF: np.ndarray, is_concept_N: np.ndarray) -> np.ndarray:
    """The AUROC of each column [F], or of a single one.

    This is how often a passage of the concept has a larger value than another passage. Equal values count half.
    """
    p, q = is_concept_N.sum(), (~is_concept_N).sum()
    return (rankdata(values_NxF, axis=0)[is_concept_N].sum(0) - p * (p + 1) / 2) / (p * q)


def best_threshold(values_N: np.ndarray, is_concept_N: np.ndarray) -> float:
    """The threshold with the best F1, half-way between two values. A threshold below all values is never chosen."""
    values, counts = np.unique(values_N, return_counts=True)
    if len(values) == 1:
        return float(values[0])
    concept = np.array([is_concept_N[values_N == value].sum() for value in values])
    fires, right = counts[::-1].cumsum()[:-1], concept[::-1].cumsum()[:-1]  # above each threshold, the highest first
    f1 = 2 * right / (fires + is_concept_N.sum())
    return float(((values[1:] + values[:-1]) / 2)[::-1][f1.argmax()])


def permutation_test(
    values_NxC: np.ndarray, is_concept_N: np.ndarray, permutations: int, rng: np.random.Generator
) -> np.ndarray:
    """One-sided p-values [C] of the rank sum (Mann and Whitney's U) under shuffled labels, (1 + as large) / (1 + S).

    The normal approximation is not used. With many tied zeros and few passages its p-values are far too small.
    """
    ranks_NxC = rankdata(values_NxC, axis=0)
    observed_C, p = ranks_NxC[is_concept_N].sum(0), int(is_concept_N.sum())
    as_large_C = np.zeros(values_NxC.shape[1], np.int64)
    for start in range(0, permutations, 1000):
        count = min(1000, permutations - start)
        drawn_SxP = rng.random((count, len(values_NxC))).argpartition(p - 1, axis=1)[:, :p]
        permuted_SxN = np.zeros((count, len(values_NxC)))
        np.put_along_axis(permuted_SxN, drawn_SxP, 1.0, axis=1)
        as_large_C += (permuted_SxN @ ranks_NxC >= observed_C - 1e-6).sum(0)
    return (1 + as_large_C) / (1 + permutations)


def judge(
    columns: list[MaxPooled], is_concept_N: np.ndarray, set_N: np.ndarray, fdr: float, rng: np.random.Generator
) -> list[Detector]:
    """Threshold and score features, one column each.

    So many permutations are drawn that the smallest possible p-value passes `fdr`.
    """
    if not columns:
        return []
    is_threshold_N, is_concept_M = set_N == THRESHOLD, is_concept_N[set_N == SCORING]
    whole_MxC = np.concatenate([column.whole_NxF[set_N == SCORING] for column in columns], 1)
    p_C = permutation_test(whole_MxC, is_concept_M, max(PERMUTATIONS, int(2 * len(columns) / fdr)), rng)
    detectors = []
    for column, whole_M, p_value in zip(columns, whole_MxC.T, p_C, strict=True):
        threshold = best_threshold(column.whole_NxF[is_threshold_N, 0], is_concept_N[is_threshold_N])
        concept_P, others_Q = whole_M[is_concept_M], whole_M[~is_concept_M]
        wins_PxQ = (concept_P[:, None] > others_Q) + 0.5 * (concept_P[:, None] == others_Q)
        hits, alarms = int((concept_P > threshold).sum()), int((others_Q > threshold).sum())
        rest_M = column.rest_NxF[set_N == SCORING, 0]
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


def _best(member: str, pooled: MaxPooled, is_concept_N: np.ndarray, among_N: np.ndarray, top: int) -> list[_Candidate]:
    values_MxF, is_concept_M = pooled.whole_NxF[among_N], is_concept_N[among_N]
    auroc_F = auroc(values_MxF, is_concept_M)
    difference_F = values_MxF[is_concept_M].mean(0) - values_MxF[~is_concept_M].mean(0)
    separation_F = difference_F / np.maximum(values_MxF.std(0), 1e-30)
    return [
        _Candidate(
            member, f, float(auroc_F[f]), float(separation_F[f]), MaxPooled(*(x_NxF[:, [f]] for x_NxF in pooled))
        )
        for f in np.lexsort((-separation_F, -auroc_F))[:top].tolist()
    ]
