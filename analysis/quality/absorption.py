"""Feature absorption on first letters: how often a letter's feature is silent because another feature replaces it.

The method is of Chanin et al. 2024 (arXiv 2409.14507), in the version of SAEBench (arXiv 2503.09532).

Shapes: N words, M held-out words of one letter that the probe classifies correctly, D width of the model,
F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.quality.pooling import Pooled
from analysis.quality.probe import Probe, fit

SPLIT_GAIN = 0.03  # tau_fs: gain in F1 that one more feature must bring to count as part of the concept
MAX_SPLIT = 10
L1 = 0.01  # L1 coefficient of the probe that ranks features, as in SAEBench
MIN_PROBE_F1 = 0.6  # below it the model does not represent the letter, and absorption has no meaning
MIN_WORDS = 5  # words that each letter needs, both to train on and held out
FRACTION_COSINE, FULL_COSINE, SHARE = 0.1, 0.025, 0.4
ABSORBERS = 3


@dataclass(frozen=True)
class Letter:
    """Absorption of one letter. `fraction` and `full` are means over its M words, whose number is `words`."""

    probe_f1: float
    split_f1: float
    split_features: list[int]
    words: int
    fraction: float
    full: float
    absorbed: list[tuple[str, int]]  # words with full absorption, and the feature


@dataclass(frozen=True)
class Absorption:
    """Means over letters. A dictionary without absorption has 0. None if no letter could be measured.

    If `split_f1` is far below `probe_f1`, the dictionary has no features for letters. `fraction` and `full` then
    measure their absence, not their absorption.
    """

    fraction: float | None
    full: float | None
    split_features: float | None
    split_f1: float | None
    probe_f1: float | None
    letters: dict[str, Letter]
    left_out: dict[str, str]  # letters that could not be measured, and why


def letter_probes(x_NxD: np.ndarray, letters_N: np.ndarray, is_train_N: np.ndarray) -> dict[str, Probe]:
    """A logistic probe for each letter with enough words, on the activations of the words to train on.

    It depends on the model only, so all dictionaries of a site share it.
    """
    probes = {}
    for name in np.unique(letters_N):
        is_letter_N = letters_N == name
        if min((is_letter_N & side_N).sum() for side_N in (is_train_N, ~is_train_N)) >= MIN_WORDS:
            probes[str(name)] = fit(x_NxD[is_train_N], is_letter_N[is_train_N], balanced=True)
    return probes


def compute_absorption(
    pooled: Pooled, words: list[str], letters_N: np.ndarray, is_train_N: np.ndarray, probes: dict[str, Probe]
) -> Absorption:
    """Absorption of every letter, from the activation and the features at the token of each word.

    The letter's direction is that of its probe (see `letter_probes`). The letter's own features are the k features
    that an L1 probe weighs most; k grows as long as F1 on held-out words gains more than 0.03.
    """
    letters, left_out = {}, {}
    alive_F = np.flatnonzero((pooled.f_NxF[is_train_N] != 0).any(0))
    for name in np.unique(letters_N):
        if not len(alive_F):
            left_out[str(name)] = "no feature of the dictionary fires on any training word"
            continue
        is_letter_N = letters_N == name
        if str(name) not in probes:
            counts = [int((is_letter_N & side_N).sum()) for side_N in (is_train_N, ~is_train_N)]
            left_out[str(name)] = f"{counts[0]} words to train on, {counts[1]} held out: {MIN_WORDS} of each are needed"
            continue
        probe = probes[str(name)]
        says_N = probe.says(pooled.x_NxD)
        probe_f1 = f1(says_N[~is_train_N], is_letter_N[~is_train_N])
        if probe_f1 < MIN_PROBE_F1:
            left_out[str(name)] = f"the probe's F1 on held-out words is {probe_f1:.2f}, under {MIN_PROBE_F1}"
            continue
        split, split_f1 = split_features(pooled.f_NxF, alive_F, is_letter_N, is_train_N)
        judged = np.flatnonzero(is_letter_N & says_N & ~is_train_N)
        direction_D = probe.weights_C / np.linalg.norm(probe.weights_C)
        fraction_M, full_M, top_M = absorbed(
            pooled.x_NxD[judged] @ direction_D, pooled.f_NxF[judged], pooled.decoder_FxD @ direction_D, split
        )
        examples = [(words[i], int(top)) for i, top, full in zip(judged, top_M, full_M, strict=True) if full]
        letters[str(name)] = Letter(
            probe_f1, split_f1, split, len(judged), float(fraction_M.mean()), float(full_M.mean()), examples
        )

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return Absorption(
        mean([letter.fraction for letter in letters.values()]),
        mean([letter.full for letter in letters.values()]),
        mean([len(letter.split_features) for letter in letters.values()]),
        mean([letter.split_f1 for letter in letters.values()]),
        mean([letter.probe_f1 for letter in letters.values()]),
        letters,
        left_out,
    )


def split_features(
    f_NxF: np.ndarray, alive_F: np.ndarray, is_letter_N: np.ndarray, is_train_N: np.ndarray
) -> tuple[list[int], float]:
    """(the features that together represent the letter, the F1 of a probe on them)."""
    weights = fit(f_NxF[np.ix_(is_train_N, alive_F)], is_letter_N[is_train_N], l1=L1, balanced=True).weights_C
    order = np.argsort(-weights, kind="stable")[: max(1, min(MAX_SPLIT, int((weights > 0).sum())))]
    best: tuple[list[int], float] = ([], 0.0)
    for k in range(1, len(order) + 1):
        features = alive_F[order[:k]]
        probe = fit(f_NxF[np.ix_(is_train_N, features)], is_letter_N[is_train_N], balanced=True)
        score = f1(probe.says(f_NxF[np.ix_(~is_train_N, features)]), is_letter_N[~is_train_N])
        if k > 1 and score <= best[1] + SPLIT_GAIN:
            break
        best = (features.tolist(), score)
    return best


def absorbed(
    projection_M: np.ndarray, f_MxF: np.ndarray, cosine_F: np.ndarray, split: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(absorption fraction, full absorption, the feature with the largest contribution) of each word, [M] each.

    A feature contributes f·cos to the projection of the activation on the letter's direction.
    Full absorption: no feature of the split fires, and the feature that contributes most has cos ≥ 0.025 and
    contributes at least 0.4 of the projection.
    Fraction: A / (A + S). S is the contribution of the split. A is that of the three largest other features with
    cos ≥ 0.1, at most the projection − S. The fraction is 0 if those three contribute less than 0.4 of the projection,
    or if the split contributes all of it.
    """
    gives_MxF = f_MxF * cosine_F
    top_M = gives_MxF.argmax(1)
    silent_M = (np.abs(f_MxF[:, split]) < 1e-8).all(1)
    enough_M = gives_MxF.max(1) >= SHARE * projection_M
    full_M = silent_M & (projection_M > 0) & enough_M & (cosine_F[top_M] >= FULL_COSINE)

    own_M = gives_MxF[:, split].sum(1)
    others_MxF = np.where(cosine_F >= FRACTION_COSINE, np.maximum(gives_MxF, 0), 0)
    others_MxF[:, split] = 0
    others_M = np.sort(others_MxF, axis=1)[:, -ABSORBERS:].sum(1)
    taken_M = np.minimum(others_M, projection_M - own_M)
    applies_M = (projection_M > 0) & (own_M < projection_M) & (others_M >= SHARE * projection_M)
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction_M = np.where(own_M <= 0, 1.0, taken_M / (taken_M + own_M))
    return np.where(applies_M, fraction_M, 0.0), full_M, top_M


def f1(says_N: np.ndarray, is_N: np.ndarray) -> float:
    return 2 * int((says_N & is_N).sum()) / max(1, int(says_N.sum() + is_N.sum()))
