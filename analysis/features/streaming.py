"""The strongest firings and a histogram of activations for each feature, collected in bounded memory from a stream.

Shapes: N firings, F features."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from harvest.text.hashes import MIX

BARS, SMALLEST = 128, 2.0**-20  # bars of a histogram, half of them below 0, and its initial limit
PENDING = 1 << 20  # firings that are collected before they are merged


ENTRY = np.dtype(
    [
        ("feature", "i4"),
        ("key", "f4"),
        ("value", "f4"),
        ("row", "i8"),
        ("window", "i8"),
        ("token", "i4"),
        ("alike", "u8"),
    ]
)


@dataclass
class TopKPerFeature:
    """A streaming top-k: the `size` firings with the largest keys for each feature.

    If they are to be `apart`, no two of the firings share a window or an equal context: from the largest key on, each
    firing is hidden that shares one with a firing before it. As many hidden firings are kept in reserve, because the
    firing that hides them may be hidden itself by a later one.
    """

    features: int
    size: int
    apart: bool = False
    entries: np.ndarray = field(default_factory=lambda: np.empty(0, ENTRY))
    pending: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.floor_F = np.full(self.features, -np.inf, np.float32)

    def add(self, firings_Z: np.ndarray) -> None:
        self.pending.append(firings_Z[firings_Z["key"] > self.floor_F[firings_Z["feature"]]])
        if sum(map(len, self.pending)) > PENDING:
            self.settle()

    def settle(self) -> np.ndarray:
        """Merge all firings seen so far. Returns the top entries, ordered by feature and falling key."""
        seen = np.concatenate([self.entries, *self.pending])
        seen = seen[np.lexsort((seen["row"], -seen["key"], seen["feature"]))]
        counts = distinct(seen) if self.apart else np.ones(len(seen), bool)
        rank, hidden = ranks(seen["feature"], counts), ranks(seen["feature"], ~counts)
        last = counts & (rank == self.size - 1)
        self.floor_F[seen["feature"][last]] = seen["key"][last]
        stays = (rank < self.size) & (counts | (hidden < self.size))
        self.entries, self.pending = seen[stays], []
        return seen[stays & counts]

    def table(self, name: str, none: float) -> np.ndarray:
        """One field of the `size` strongest entries of each feature, [F, size]; missing entries are `none`."""
        entries = self.settle()
        rank = ranks(entries["feature"], np.ones(len(entries), bool))
        table_FxK = np.full((self.features, self.size), none, ENTRY[name])
        table_FxK[entries["feature"], rank] = entries[name]
        return table_FxK


def ranks(feature_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """The number of counted entries of the same feature before each entry; entries are ordered by feature."""
    before_N = np.cumsum(counts_N) - counts_N
    return before_N - before_N[np.searchsorted(feature_N, feature_N)]


def distinct(entries_N: np.ndarray) -> np.ndarray:
    """Mark each entry that shares neither window nor context with an earlier marked entry of its feature, bool [N].

    Entries must be ordered by feature and falling key.
    """
    feature_N, groups = entries_N["feature"].astype(np.uint64) << np.uint64(40), []
    for what_N in (entries_N["alike"], entries_N["window"].astype(np.uint64)):
        groups.append(np.unique((what_N * MIX) ^ feature_N, return_inverse=True)[1])
    is_distinct_N, open_M = np.zeros(len(entries_N), bool), np.arange(len(entries_N))
    while len(open_M):  # no entry hides one that is the first of its window and the first of its context
        first_M = np.ones(len(open_M), bool)
        for group_N in groups:
            first = np.empty(len(entries_N), np.int64)
            first[group_N[open_M][::-1]] = open_M[::-1]
            first_M &= first[group_N[open_M]] == open_M
        is_distinct_N[open_M[first_M]] = True
        for group_N in groups:
            is_taken = np.zeros(len(entries_N), bool)
            is_taken[group_N[is_distinct_N]] = True
            open_M = open_M[~is_taken[group_N[open_M]]]
    return is_distinct_N


class Histogram:
    """A histogram of each feature's values, with bars of equal width from −limit to limit.

    If a value exceeds a feature's limit, the feature's bars are merged in pairs, which doubles the limit. The range of
    values therefore need not be known in advance. In the end, positive values are in 32 to 64 bars.
    """

    def __init__(self, features: int):
        self.count_FxB = np.zeros((features, BARS), np.int32)
        self.limit_F = np.full(features, SMALLEST)

    def add(self, feature_Z: np.ndarray, value_Z: np.ndarray) -> None:
        largest_F = np.zeros(len(self.limit_F))
        np.maximum.at(largest_F, feature_Z, np.abs(value_Z))
        while (beyond := np.flatnonzero(largest_F >= self.limit_F)).size:
            pairs = self.count_FxB[beyond].reshape(len(beyond), BARS // 2, 2).sum(2)
            self.count_FxB[beyond] = np.pad(pairs, ((0, 0), (BARS // 4, BARS // 4)))
            self.limit_F[beyond] *= 2
        bar_Z = np.floor(value_Z / self.limit_F[feature_Z] * (BARS // 2)).astype(int) + BARS // 2
        self.count_FxB += counted(feature_Z, bar_Z, self.count_FxB.shape)


def counted(row_Z: np.ndarray, column_Z: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A table of how often each (row, column) occurs."""
    return np.bincount(row_Z * shape[1] + column_Z, minlength=shape[0] * shape[1]).reshape(shape)
