"""Spurious correlation removal (SCR): how much of a probe's bias a few ablated features remove.

The method is that of SAEBench (arXiv 2503.09532).

Shapes: N documents, D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.quality.pooling import Pooled
from analysis.quality.probe import Probe, fit
from harvest.errors import InputError

MIN_DOCUMENTS = 10  # documents that each combination of labels needs, both to train on and held out
MIN_ROOM = 0.02  # accuracy that the bias must cost for a score to be defined


@dataclass(frozen=True)
class Removal:
    """Accuracies of probes for `wanted` on held-out documents, in which both labels are balanced.

    base: a biased probe, trained on documents in which `wanted` and `spurious` always agree.
    oracle: a probe trained on balanced documents.
    ablated: the biased probe after n features are ablated, by n.
    score: (ablated − base) / (oracle − base), by n; None if the bias costs less than 0.02 of accuracy.
    """

    wanted: str
    spurious: str
    base: float
    oracle: float
    ablated: dict[str, float]
    score: dict[str, float | None]
    features: list[int]  # those with the largest effect on the spurious probe first


@dataclass(frozen=True)
class SpuriousCorrelation:
    """Each concept in turn is the spurious one. `score` is of the direction in which the biased probe is worse."""

    score: dict[str, float | None]
    directions: list[Removal]
    documents: dict[str, int]  # documents of each combination of labels: to train on, held out


def compute_spurious_correlation(
    pooled: Pooled,
    concepts: dict[str, np.ndarray],
    is_train_N: np.ndarray,
    ns: tuple[int, ...],
    seed: int = 0,
) -> SpuriousCorrelation:
    """SCR for a pair of concepts. `concepts` maps two names to whether each document has the concept, bool [N].

    Probes are trained on mean-pooled activations. Raises InputError if a combination of labels has too few documents.
    """
    (name_a, a_N), (name_b, b_N) = concepts.items()
    rng = np.random.default_rng(seed)
    train, test, sizes = sides(concepts, is_train_N, rng)
    balanced, held_out = (
        np.concatenate([rows[:size] for rows in combinations.values()])
        for combinations, size in zip((train, test), sizes.values(), strict=True)
    )
    biased = np.concatenate([train[both][: 2 * sizes["train"]] for both in ((True, True), (False, False))])
    x_NxD = pooled.x_NxD
    base = fit(x_NxD[biased], a_N[biased])  # a and b are equal in the biased documents
    fair = {name: fit(x_NxD[balanced], has_N[balanced]) for name, has_N in concepts.items()}
    directions = [
        remove(pooled, base, fair, concepts, wanted, spurious, balanced, held_out, ns)
        for wanted, spurious in ((name_a, name_b), (name_b, name_a))
    ]
    return SpuriousCorrelation(min(directions, key=lambda removal: removal.base).score, directions, sizes)


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
    """Ablate the features with the largest |mean difference · decoder row · probe of the spurious concept|.

    Their contribution is subtracted from x, and the dictionary's error stays. Ablation is linear, so it can be
    applied to mean-pooled activations.
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
    """Documents of each combination of the two concepts: (to train on, held out, smallest number in each).

    Raises InputError if a combination has too few.
    """
    (name_a, a_N), (name_b, b_N) = concepts.items()
    train, test = (quadrants(a_N, b_N, side_N, rng) for side_N in (is_train_N, ~is_train_N))
    sizes = {name: min(map(len, rows.values())) for name, rows in (("train", train), ("held_out", test))}
    if min(sizes.values()) < MIN_DOCUMENTS:
        raise InputError(
            f"a combination of {name_a} and {name_b} has {sizes['train']} documents to train on and "
            f"{sizes['held_out']} held out; at least {MIN_DOCUMENTS} are needed: give more documents, or wider "
            "--concepts"
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
