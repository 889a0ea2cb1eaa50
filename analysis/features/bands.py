"""Contexts of one feature by strength of activation, and what its direction is aligned with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.features.statistics import Features

ALIGNED = 3  # neurons and features beside a feature
INTERVALS, EACH = 5, 5  # of the firings by rank; contexts of each


class Group(NamedTuple):
    """Contexts of about one strength; `bin_min` and `bin_contains` of the strongest are −1."""

    bin_min: float
    bin_max: float
    bin_contains: float  # share of all rows
    rows: np.ndarray


class Aligned(NamedTuple):
    """A neuron that a decoder row points along: its entry there, and the share of the row's L1 norm."""

    neuron: int
    value: float
    share: float


def alignment(decoder_D: np.ndarray) -> list[Aligned]:
    """The neurons with the largest entries."""
    size = max(float(np.abs(decoder_D).sum()), 1e-30)
    largest = np.argsort(-decoder_D, kind="stable")[:ALIGNED].tolist()
    return [Aligned(d, float(decoder_D[d]), abs(float(decoder_D[d])) / size) for d in largest]


def groups_of(features: Features, feature: int) -> list[Group]:
    """The strongest contexts, then some of each stretch of ranks, strongest first; no window and no context twice."""
    top_K, row_R = (of_FxN[feature][of_FxN[feature] >= 0] for of_FxN in (features.top_row_FxK, features.sample_row_FxR))
    if not len(top_K):
        return []
    value_R = features.sample_value_FxR[feature, : len(row_R)]
    groups = [Group(-1.0, float(features.max_F[feature]), -1.0, top_K)]
    is_new_R = features.sample_new_FxR[feature, : len(row_R)]
    for rank_N in np.array_split(np.arange(len(row_R)), INTERVALS):
        new_N = rank_N[is_new_R[rank_N]]
        if len(new_N):
            chosen = np.unique(np.linspace(0, len(new_N) - 1, min(EACH, len(new_N))).round().astype(int))
            low, high = float(value_R[rank_N].min()), float(value_R[rank_N].max())
            share = float(features.density_F[feature] * len(rank_N) / len(row_R))
            groups.append(Group(low, high, share, row_R[new_N[chosen]]))
    return groups


def firing_cosine(features: Features, feature: int, others_A: np.ndarray) -> np.ndarray:
    """Of the rows on which each fires, as 0 and 1: from the correlation that is kept."""
    share, share_A = features.density_F[feature], features.density_F[others_A]
    phi_A = features.together_phi_FxJ[feature, : len(others_A)]
    both_A = phi_A * np.sqrt(share * (1 - share) * share_A * (1 - share_A)) + share * share_A
    return both_A / np.sqrt(share * share_A)
