"""Can a bias be taken out of a probe by a few features? Spurious correlation removal, by SAEBench (arXiv 2503.09532).

Shapes: N documents, D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.quality.pooling import Pooled
from analysis.quality.probe import Probe, fit
from harvest.errors import InputError

MIN_DOCUMENTS = 10  # of each combination of labels, on either side
MIN_ROOM = 0.02  # accuracy that a bias must cost to be spoken of


@dataclass(frozen=True)
class Removal:
    """Accuracies of telling `wanted` on held-out documents on which both labels are balanced.

    base: of a probe trained where `wanted` and `spurious` always agree; oracle: trained on balanced documents;
    ablated: of the biased probe once the n features are gone. score = (ablated − base)/(oracle − base), by n; None
    where the bias costs the probe less than 0.02.
    """

    wanted: str
    spurious: str
    base: float
    oracle: float
    ablated: dict[str, float]
    score: dict[str, float | None]
    features: list[int]  # the most guilty first


@dataclass(frozen=True)
class SpuriousCorrelation:
    """Each concept in turn is the spurious one; `score` is that of the direction in which the bias does more harm."""

    score: dict[str, float | None]
    directions: list[Removal]
    documents: dict[str, int]  # of each combination of labels: to train on, held out


def compute_spurious_correlation(
    pooled: Pooled,
    concepts: dict[str, np.ndarray],
    is_train_N: np.ndarray,
    ns: tuple[int, ...] = (2, 5, 10, 20, 50),
    seed: int = 0,
) -> SpuriousCorrelation:
    """`concepts`: two names, of each whether a document has it, bool [N]. Probes see mean-pooled activations.

    Raises InputError where some combination of labels has too few documents.
    """
    (name_a, a_N), (name_b, b_N) = concepts.items()
    rng = np.random.default_rng(seed)
    train, test, sizes = sides(concepts, is_train_N, rng)
    balanced, held_out = (
        np.concatenate([rows[:size] for rows in of.values()])
        for of, size in zip((train, test), sizes.values(), strict=True)
    )
    biased = np.concatenate([train[both][: 2 * sizes["train"]] for both in ((True, True), (False, False))])
    x_NxD = pooled.x_NxD
    base = fit(x_NxD[biased], a_N[biased])  # there, a is b
    fair = {name: fit(x_NxD[balanced], of_N[balanced]) for name, of_N in concepts.items()}
    directions = [
        remove(pooled, base, fair, concepts, wanted, spurious, balanced, held_out, ns)
        for wanted, spurious in ((name_a, name_b), (name_b, name_a))
    ]
    return SpuriousCorrelation(min(directions, key=lambda of: of.base).score, directions, sizes)


def remove(
    pooled: Pooled,
    base: Probe,
    fair: dict[str, Probe],
    concepts: dict[str, np.ndarray],
    wanted: str,
    spurious: str,
    balanced: np.ndarray,
    held_out: np.ndarray,
    ns: tuple[int, ...],
) -> Removal:
    """Ablates the features with the largest |mean difference · decoder row · probe of the spurious concept|.

    Their part of x is taken away and the dictionary's error stays. All of it is linear, so the mean-pooled do.
    """
    f_MxF, has_M = pooled.f_NxF[balanced], concepts[spurious][balanced]
    effect_F = np.abs((f_MxF[has_M].mean(0) - f_MxF[~has_M].mean(0)) * (pooled.decoder_FxD @ fair[spurious].weights_C))
    guilty_F = np.argsort(-effect_F, kind="stable")
    x_MxD, is_wanted_M = pooled.x_NxD[held_out], concepts[wanted][held_out]

    def accuracy_without(features: np.ndarray) -> float:
        removed_MxD = pooled.f_NxF[np.ix_(held_out, features)] @ pooled.decoder_FxD[features]
        return base.accuracy(x_MxD - removed_MxD, is_wanted_M)

    before, oracle = base.accuracy(x_MxD, is_wanted_M), fair[wanted].accuracy(x_MxD, is_wanted_M)
    ablated = {str(n): accuracy_without(guilty_F[:n][effect_F[guilty_F[:n]] > 0]) for n in ns}
    room = oracle - before
    score = {n: (after - before) / room if room >= MIN_ROOM else None for n, after in ablated.items()}
    return Removal(wanted, spurious, before, oracle, ablated, score, guilty_F[: max(ns)].tolist())


def sides(
    concepts: dict[str, np.ndarray], is_train_N: np.ndarray, rng: np.random.Generator
) -> tuple[dict, dict, dict[str, int]]:
    """(quadrants to train on, held out, the smallest size of each). Raises InputError where one is too small."""
    (name_a, a_N), (name_b, b_N) = concepts.items()
    train, test = (quadrants(a_N, b_N, side_N, rng) for side_N in (is_train_N, ~is_train_N))
    sizes = {name: min(map(len, rows.values())) for name, rows in (("train", train), ("held_out", test))}
    if min(sizes.values()) < MIN_DOCUMENTS:
        raise InputError(
            f"--concepts {name_a} {name_b}: a combination of them has {sizes['train']} documents to train on and "
            f"{sizes['held_out']} held out; at least {MIN_DOCUMENTS} are needed. Give more documents or wider concepts"
        )
    return train, test, sizes


def quadrants(
    a_N: np.ndarray, b_N: np.ndarray, among_N: np.ndarray, rng: np.random.Generator
) -> dict[tuple[bool, bool], np.ndarray]:
    """The documents of each combination of the two labels, shuffled."""
    return {
        (a, b): rng.permutation(np.flatnonzero((a_N == a) & (b_N == b) & among_N))
        for a in (True, False)
        for b in (True, False)
    }
