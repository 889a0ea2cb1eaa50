"""Contexts of a feature grouped by the strength of its activation, and the neurons that its direction aligns with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.features.statistics import Features

ALIGNED = 3  # neurons to report
INTERVALS, EACH = 5, 5  # number of intervals of the firings' ranks, and contexts from each


class ContextGroup(NamedTuple):
    """Contexts of similar strength. For the group of the strongest contexts `bin_min` and `bin_contains` are −1."""

    bin_min: float
    bin_max: float
    bin_contains: float  # share of all rows
    rows: np.ndarray


class Aligned(NamedTuple):
    """A neuron that a decoder row is aligned with: the row's entry there, and its share of the row's L1 norm."""

    neuron: int
    value: float
    share: float


def alignment(decoder_D: np.ndarray) -> list[Aligned]:
    """The neurons with the largest entries of a decoder row, largest first."""
    size = max(float(np.abs(decoder_D).sum()), 1e-30)
    largest = np.argsort(-decoder_D, kind="stable")[:ALIGNED].tolist()
    return [Aligned(d, float(decoder_D[d]), abs(float(decoder_D[d])) / size) for d in largest]


def context_groups(features: Features, feature: int) -> list[ContextGroup]:
    """The strongest contexts, then some of each interval of ranks, strongest first. No window or context repeats."""
    top_K, row_R = (rows_N[rows_N >= 0] for rows_N in (features.top_row_FxK[feature], features.sample_row_FxR[feature]))
    if not len(top_K):
        return []
    value_R = features.sample_value_FxR[feature, : len(row_R)]
    groups = [ContextGroup(-1.0, float(features.max_F[feature]), -1.0, top_K)]
    is_new_R = features.sample_new_FxR[feature, : len(row_R)]
    for rank_N in np.array_split(np.arange(len(row_R)), INTERVALS):
        new_N = rank_N[is_new_R[rank_N]]
        if len(new_N):
            chosen = np.unique(np.linspace(0, len(new_N) - 1, min(EACH, len(new_N))).round().astype(int))
            low, high = float(value_R[rank_N].min()), float(value_R[rank_N].max())
            share = float(features.density_F[feature] * len(rank_N) / len(row_R))
            groups.append(ContextGroup(low, high, share, row_R[new_N[chosen]]))
    return groups


def firing_cosine(features: Features, feature: int, others_A: np.ndarray) -> np.ndarray:
    """The cosine of a feature's firing (0 or 1 on each row) with that of others, [A], from their stored correlation."""
    share, share_A = features.density_F[feature], features.density_F[others_A]
    phi_A = features.together_phi_FxJ[feature, : len(others_A)]
    both_A = phi_A * np.sqrt(share * (1 - share) * share_A * (1 - share_A)) + share * share_A
    return both_A / np.sqrt(share * share_A)
