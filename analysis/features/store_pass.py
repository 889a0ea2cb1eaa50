"""On what the features of a dictionary fire: by one pass over all rows, in bounded memory.

Memory: F times the contexts, positions, labels, bars and buckets, and what `features/cofiring.py` takes; nothing grows
with the rows.

Shapes: W windows of a chunk, T tokens a window, P of them with a row, N = W·P rows, Z firings (row, feature) of a
chunk, F features, K kept, L labels, S shuffles, G documents, V vocabulary, B bars or buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from scipy import sparse

from analysis.features.cofiring import CoFiring
from analysis.features.hashes import MIX, context_hashes, hashed
from analysis.features.near_copies import Originals, originals_in
from harvest.store import ActivationStore
from sae_jax.models.base import SAE

CHUNK_ROWS, CHUNK_VALUES = 4096, 1 << 27  # rows encoded at once, and activations at most
CONTEXTS, SAMPLE = 20, 100  # kept of each feature: the strongest, and any
PENDING = 1 << 20  # firings that wait to be sorted in
CONTEXT_TOKENS = 10  # rows with the same token and as many the same before it are one context
ENTRY = np.dtype([("feature", "i4"), ("key", "f4"), ("value", "f4"), ("row", "i8"), ("token", "i4"), ("alike", "u8")])
SHUFFLES = 5
BUCKETS = 128  # by which is told over how many documents, tokens or windows the firings of a feature are spread
BARS, SMALLEST = 128, 2.0**-20  # of a histogram, half of them below 0; where a feature's first ones end


@dataclass(frozen=True)
class Labels:
    """What is known of rows by their document, their token or their position; `codes` are indices into `names`.

    Firings come in runs, on few documents and on few token types: labels dealt to rows anew would find specialization
    in every feature. So the null deals codes anew to documents, or to token types, and shifts the positions of a
    window, all by as many and around its end. Near-copies of documents with one label, and of windows, are one.
    """

    by: str  # "document", "token", "position"
    codes: np.ndarray  # [G], [V] or [P]
    names: list[str]

    def units(self, of: Originals) -> np.ndarray:
        """The number [U] of the group that the null keeps together, for each window, document or token."""
        if self.by == "position":
            return of.window_W
        if self.by == "token":
            return np.arange(len(self.codes))
        alone_G = np.arange(len(self.codes))
        alone_G[: len(of.document_G)] = of.document_G[: len(alone_G)]
        return alone_G * len(self.names) + self.codes

    def dealt(self, unit_U: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Codes of documents or tokens, or shifts of windows: as they are, and SHUFFLES times anew, [1 + S, U]."""
        _, first, unit_U = np.unique(unit_U, return_index=True, return_inverse=True)
        if self.by == "position":
            drawn_SxU = rng.integers(0, len(self.codes), (SHUFFLES, len(first)))
            return np.stack([np.zeros(len(unit_U), int), *drawn_SxU[:, unit_U]])
        return np.stack([self.codes, *(rng.permutation(self.codes[first])[unit_U] for _ in range(SHUFFLES))])

    def of_rows(self, chunk: Chunk, dealt_SxU: np.ndarray) -> np.ndarray:
        """The labels of a chunk's rows, and of the null: [1 + S, N]."""
        if self.by == "position":
            positions = len(self.codes)
            return self.codes[(chunk.position_N + dealt_SxU[:, chunk.row_N // positions]) % positions]
        return dealt_SxU[:, chunk.document_N if self.by == "document" else chunk.token_N]

    def units_of_rows(self, chunk: Chunk, unit_U: np.ndarray) -> np.ndarray:
        """The number [N] of the group that the null keeps together, of each row; a window is split by label."""
        if self.by == "position":
            return unit_U[chunk.row_N // len(self.codes)] * len(self.names) + self.codes[chunk.position_N]
        return unit_U[chunk.document_N if self.by == "document" else chunk.token_N]


class Chunk(NamedTuple):
    """Rows that follow each other, and where they stand; `row_N` counts on from training rows to held-out ones."""

    x_NxD: np.ndarray
    row_N: np.ndarray
    token_N: np.ndarray
    position_N: np.ndarray
    document_N: np.ndarray
    alike_N: np.ndarray  # a hash of the token and of those before it


def chunks(store: ActivationStore, rows_at_once: int) -> Iterator[Chunk]:
    """All rows, training rows first; whole windows, of about so many rows."""
    before = 0
    for split in (store.train, store.held_out):
        positions = split.positions
        step = max(1, rows_at_once // positions)
        for start in range(0, len(split) // positions, step):
            rows = slice(start * positions, min((start + step) * positions, len(split)))
            tokens_WxT, document_W = split.read_windows(start, start + step)
            alike_WxT = context_hashes(tokens_WxT, CONTEXT_TOKENS)
            yield Chunk(
                split.read(rows.start, rows.stop).astype(np.float32),
                np.arange(rows.start, rows.stop) + before,
                tokens_WxT[:, split.first_position :].ravel(),
                np.tile(np.arange(positions), len(tokens_WxT)),
                np.repeat(document_W, positions),
                alike_WxT[:, split.first_position :].ravel(),
            )
        before += len(split)


@dataclass
class Kept:
    """A streaming top-k: of each feature the firings of the largest keys.

    With `positions`, those of a window, no two are of one window or of equal contexts: from the largest key on, each
    firing is left out that shares its window or context with one that is not. As many of those left out are kept at
    hand, for the one that hides them may itself be hidden by what comes later.
    """

    features: int
    size: int
    positions: int = 0
    entries: np.ndarray = field(default_factory=lambda: np.empty(0, ENTRY))
    pending: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.floor_F = np.full(self.features, -np.inf, np.float32)

    def add(self, firings_Z: np.ndarray) -> None:
        self.pending.append(firings_Z[firings_Z["key"] > self.floor_F[firings_Z["feature"]]])
        if sum(map(len, self.pending)) > PENDING:
            self.settle()

    def settle(self) -> np.ndarray:
        """All that were seen, merged: the entries kept, ordered by feature and falling key."""
        found = np.concatenate([self.entries, *self.pending])
        found = found[np.lexsort((found["row"], -found["key"], found["feature"]))]
        counts = distinct(found, self.positions) if self.positions else np.ones(len(found), bool)
        rank, hidden = ranks(found["feature"], counts), ranks(found["feature"], ~counts)
        last = counts & (rank == self.size - 1)
        self.floor_F[found["feature"][last]] = found["key"][last]
        stays = (rank < self.size) & (counts | (hidden < self.size))
        self.entries, self.pending = found[stays], []
        return found[stays & counts]

    def table(self, name: str, none: float) -> np.ndarray:
        """One field of the entries as [F, K], filled up with `none`."""
        entries = self.settle()
        rank = ranks(entries["feature"], np.ones(len(entries), bool))
        table_FxK = np.full((self.features, self.size), none, ENTRY[name])
        table_FxK[entries["feature"], rank] = entries[name]
        return table_FxK


def ranks(feature_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """The number of counted entries of the same feature before each entry; entries are ordered by feature."""
    before_N = np.cumsum(counts_N) - counts_N
    return before_N - before_N[np.searchsorted(feature_N, feature_N)]


def distinct(found_N: np.ndarray, positions: int) -> np.ndarray:
    """Mark the entries that share neither window nor context with an earlier marked one; ordered by feature and key."""
    feature_N, groups = found_N["feature"].astype(np.uint64) << np.uint64(40), []
    for what_N in (found_N["alike"], (found_N["row"] // positions).astype(np.uint64)):
        groups.append(np.unique((what_N * MIX) ^ feature_N, return_inverse=True)[1])
    is_distinct_N, open_M = np.zeros(len(found_N), bool), np.arange(len(found_N))
    while len(open_M):  # the first of its window and of its context is hidden by none
        first_M = np.ones(len(open_M), bool)
        for group_N in groups:
            first = np.empty(len(found_N), np.int64)
            first[group_N[open_M][::-1]] = open_M[::-1]
            first_M &= first[group_N[open_M]] == open_M
        is_distinct_N[open_M[first_M]] = True
        for group_N in groups:
            is_taken = np.zeros(len(found_N), bool)
            is_taken[group_N[is_distinct_N]] = True
            open_M = open_M[~is_taken[group_N[open_M]]]
    return is_distinct_N


class Histogram:
    """How often each value was seen, in bars of equal width from −limit to limit.

    Where a value lies beyond a feature's limit, its bars are joined in pairs, which doubles the limit: nothing need be
    known of the values before, and at the end the positive ones are in 32 to 64 bars.
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


class Firing:
    """What one dictionary's features fire on, while it is counted."""

    def __init__(self, sae: SAE, positions: int, labels: Mapping[str, Labels], seed: int):
        self.graphdef, self.weights = nnx.split(sae)
        features = sae.W_dec.shape[0]
        self.chunk_rows = rows_at_once(features)
        self.count_F = np.zeros(features, np.int64)
        self.sum_F = np.zeros(features)
        self.top = Kept(features, CONTEXTS, positions)
        self.sample = Kept(features, SAMPLE)
        self.histogram = Histogram(features)
        self.position_FxP = np.zeros((features, positions), np.int64)
        self.together = CoFiring(features, seed)
        self.label_SxFxL = {
            name: np.zeros((1 + SHUFFLES, features, len(of.names)), np.int32) for name, of in labels.items()
        }
        self.bucket_FxB = {name: np.zeros((features, BUCKETS), np.int32) for name in labels}
        self.rng = np.random.default_rng(seed)

    def add(self, chunk: Chunk, label_SxN: Mapping[str, np.ndarray], unit_N: Mapping[str, np.ndarray]) -> None:
        n, features = len(chunk.row_N), len(self.count_F)
        x_NxD = np.zeros((max(n, self.chunk_rows), chunk.x_NxD.shape[1]), np.float32)  # one shape, compiled once
        x_NxD[:n] = chunk.x_NxD
        f_NF = np.asarray(encode(self.graphdef, self.weights, x_NxD))[:n].ravel()
        at_Z = np.flatnonzero(f_NF)
        row_Z, feature_Z = np.divmod(at_Z, features)
        firings_Z = np.empty(len(at_Z), ENTRY)
        firings_Z["feature"], firings_Z["value"] = feature_Z, f_NF[at_Z]
        firings_Z["row"], firings_Z["token"] = chunk.row_N[row_Z], chunk.token_N[row_Z]
        firings_Z["alike"] = chunk.alike_N[row_Z]
        for kept, key_Z in ((self.top, np.abs(firings_Z["value"])), (self.sample, self.rng.random(len(at_Z)))):
            firings_Z["key"] = key_Z
            kept.add(firings_Z)
        self.count_F += np.bincount(feature_Z, minlength=features)
        self.sum_F += np.bincount(feature_Z, weights=firings_Z["value"], minlength=features)
        self.histogram.add(feature_Z, firings_Z["value"])
        self.position_FxP += counted(feature_Z, chunk.position_N[row_Z], self.position_FxP.shape)
        for name, of_SxN in label_SxN.items():
            for total_FxL, of_N in zip(self.label_SxFxL[name], of_SxN, strict=True):
                total_FxL += counted(feature_Z, of_N[row_Z], total_FxL.shape)
        for name, bucket_FxB in self.bucket_FxB.items():
            bucket_N = (hashed(unit_N[name].astype(np.uint64)) % np.uint64(BUCKETS)).astype(int)
            bucket_FxB += counted(feature_Z, bucket_N[row_Z], bucket_FxB.shape)
        ends = np.searchsorted(row_Z, np.arange(n + 1))
        self.together.add(sparse.csr_array((np.ones(len(at_Z), np.int32), feature_Z, ends), (n, features)))

    def effective(self, label: str) -> np.ndarray:
        """Over how many units of equal shares (documents, tokens, windows) a feature's firings are spread, [F].

        (Σ c)² / Σ c², of its firings c in each. Units fall into buckets at random, and how unequal these are is how
        unequal they are (Alon, Matias and Szegedy 1996): the error is about √(2 / BUCKETS).
        """
        count_F, share = self.count_F.astype(float), self.bucket_FxB[label] - self.count_F[:, None] / BUCKETS
        squares_F = np.square(share).sum(1) * BUCKETS / (BUCKETS - 1)
        return count_F**2 / np.maximum(np.clip(squares_F, count_F, count_F**2), 1)


def rows_at_once(features: int) -> int:
    return max(1, min(CHUNK_ROWS, CHUNK_VALUES // features))


def counted(row_Z: np.ndarray, column_Z: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.bincount(row_Z * shape[1] + column_Z, minlength=shape[0] * shape[1]).reshape(shape)


@partial(jax.jit, static_argnums=0)
def encode(graphdef: nnx.GraphDef, weights: nnx.State, x_NxD: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, weights).encode(x_NxD)


def firing_of(
    sae: SAE,
    store: ActivationStore,
    labels: Mapping[str, Labels],
    seed: int,
    on_rows: Callable[[int], None] = lambda n: None,
) -> tuple[Firing, dict[str, np.ndarray]]:
    """(on what its features fire, of each set of labels how often each occurs [1 + S, L])."""
    firing, rng = Firing(sae, store.train.positions, labels, seed), np.random.default_rng(seed)
    originals = originals_in(store)
    units = {name: of.units(originals) for name, of in labels.items()}
    dealt = {name: of.dealt(units[name], rng) for name, of in labels.items()}
    rows_SxL = {name: np.zeros((1 + SHUFFLES, len(of.names)), np.int64) for name, of in labels.items()}
    for chunk in chunks(store, firing.chunk_rows):
        label_SxN = {name: of.of_rows(chunk, dealt[name]) for name, of in labels.items()}
        for name, of_SxN in label_SxN.items():
            rows_SxL[name] += np.stack([np.bincount(of_N, minlength=len(labels[name].names)) for of_N in of_SxN])
        firing.add(chunk, label_SxN, {name: of.units_of_rows(chunk, units[name]) for name, of in labels.items()})
        on_rows(len(chunk.row_N))
    return firing, rows_SxL
