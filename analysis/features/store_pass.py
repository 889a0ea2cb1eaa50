"""The firings of a dictionary's features, accumulated in one pass over all rows and in bounded memory.

Memory: F times the number of contexts, positions, labels, bars and buckets, and the memory of `features/cofiring.py`.
It does not grow with the number of rows.

Shapes: N rows of a chunk, Z firings (row, feature) of a chunk, F features, P positions of a window that have a row,
L labels, S shuffles, D width of the model, B bars or buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx
from scipy import sparse

from analysis.features.activations import Chunk, chunks, encode_padded, rows_at_once
from analysis.features.cofiring import CoFiring
from analysis.features.near_copies import originals_in
from analysis.features.row_labels import SHUFFLES, Labels
from analysis.features.streaming import ENTRY, Histogram, TopKPerFeature, counted
from harvest.store import ActivationStore
from harvest.text.hashes import hashed
from sae_jax.models.base import SAE

CONTEXTS, SAMPLE = 20, 100  # strongest contexts, and randomly sampled firings, to keep for each feature
BUCKETS = 128  # for estimating the number of documents, tokens or windows over which a feature's firings are spread


class FiringAccumulator:
    """The accumulated firings of one dictionary's features."""

    def __init__(self, sae: SAE, positions: int, labels: Mapping[str, Labels], seed: int):
        self.graphdef, self.weights = nnx.split(sae)
        features = sae.W_dec.shape[0]
        self.chunk_rows = rows_at_once(features)
        self.count_F = np.zeros(features, np.int64)
        self.sum_F = np.zeros(features)
        self.top = TopKPerFeature(features, CONTEXTS, apart=True)
        self.sample = TopKPerFeature(features, SAMPLE)
        self.histogram = Histogram(features)
        self.position_FxP, self.rows_P = np.zeros((features, positions), np.int64), np.zeros(positions, np.int64)
        self.together = CoFiring(features, seed)
        self.label_SxFxL = {
            name: np.zeros((1 + SHUFFLES, features, len(group.names)), np.int32) for name, group in labels.items()
        }
        self.bucket_FxB = {name: np.zeros((features, BUCKETS), np.int32) for name in labels}
        self.rng = np.random.default_rng(seed)

    def add(self, chunk: Chunk, label_SxN: Mapping[str, np.ndarray], unit_N: Mapping[str, np.ndarray]) -> None:
        n, features = len(chunk.row_N), len(self.count_F)
        f_NF = encode_padded(self.graphdef, self.weights, chunk.x_NxD, self.chunk_rows).ravel()
        index_Z = np.flatnonzero(f_NF)
        row_Z, feature_Z = np.divmod(index_Z, features)
        firings_Z = np.empty(len(index_Z), ENTRY)
        firings_Z["feature"], firings_Z["value"] = feature_Z, f_NF[index_Z]
        firings_Z["row"], firings_Z["window"] = chunk.row_N[row_Z], chunk.window_N[row_Z]
        firings_Z["token"], firings_Z["alike"] = chunk.token_N[row_Z], chunk.alike_N[row_Z]
        for kept, key_Z in ((self.top, np.abs(firings_Z["value"])), (self.sample, self.rng.random(len(index_Z)))):
            firings_Z["key"] = key_Z
            kept.add(firings_Z)
        self.count_F += np.bincount(feature_Z, minlength=features)
        self.sum_F += np.bincount(feature_Z, weights=firings_Z["value"], minlength=features)
        self.histogram.add(feature_Z, firings_Z["value"])
        self.rows_P += np.bincount(chunk.position_N, minlength=len(self.rows_P))
        self.position_FxP += counted(feature_Z, chunk.position_N[row_Z], self.position_FxP.shape)
        for name, codes_SxN in label_SxN.items():
            for total_FxL, code_N in zip(self.label_SxFxL[name], codes_SxN, strict=True):
                total_FxL += counted(feature_Z, code_N[row_Z], total_FxL.shape)
        for name, bucket_FxB in self.bucket_FxB.items():
            bucket_N = (hashed(unit_N[name].astype(np.uint64)) % np.uint64(BUCKETS)).astype(int)
            bucket_FxB += counted(feature_Z, bucket_N[row_Z], bucket_FxB.shape)
        ends = np.searchsorted(row_Z, np.arange(n + 1))
        self.together.add(sparse.csr_array((np.ones(len(index_Z), np.int32), feature_Z, ends), (n, features)))

    def effective(self, label: str) -> np.ndarray:
        """The effective number of units (documents, tokens or windows) over which a feature's firings are spread, [F].

        It is (Σ c)² / Σ c² for the numbers c of firings in each unit. Σ c² is estimated from random buckets of units
        (Alon, Matias and Szegedy 1996), with a relative error of about √(2 / BUCKETS).
        """
        count_F, share = self.count_F.astype(float), self.bucket_FxB[label] - self.count_F[:, None] / BUCKETS
        squares_F = np.square(share).sum(1) * BUCKETS / (BUCKETS - 1)
        return count_F**2 / np.maximum(np.clip(squares_F, count_F, count_F**2), 1)


def accumulate_firings(
    sae: SAE,
    store: ActivationStore,
    labels: Mapping[str, Labels],
    seed: int,
    on_rows: Callable[[int], None] = lambda n: None,
) -> tuple[FiringAccumulator, dict[str, np.ndarray]]:
    """(the accumulated firings, for each set of labels the number of rows with each label [1 + S, L])."""
    firing, rng = FiringAccumulator(sae, store.train.positions, labels, seed), np.random.default_rng(seed)
    originals = originals_in(store)
    units = {name: group.units(originals) for name, group in labels.items()}
    shuffled = {name: group.shuffled(units[name], rng) for name, group in labels.items()}
    rows_SxL = {name: np.zeros((1 + SHUFFLES, len(group.names)), np.int64) for name, group in labels.items()}
    for chunk in chunks(store, firing.chunk_rows):
        label_SxN = {name: group.of_rows(chunk, shuffled[name]) for name, group in labels.items()}
        for name, codes_SxN in label_SxN.items():
            rows_SxL[name] += np.stack([np.bincount(code_N, minlength=len(labels[name].names)) for code_N in codes_SxN])
        firing.add(chunk, label_SxN, {name: group.units_of_rows(chunk, units[name]) for name, group in labels.items()})
        on_rows(len(chunk.row_N))
    return firing, rows_SxL
