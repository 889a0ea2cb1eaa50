"""On what the features of a dictionary fire: by one pass over all rows, in bounded memory.

Memory: F times the contexts, positions, labels, bars and buckets, and what `features/cofiring.py` takes; nothing grows
with the rows.

Shapes: W windows of a chunk, T tokens a window, P of them with a row, N = W·P rows, Z firings (row, feature) of a
chunk, F features, K kept, L labels, S shuffles, G documents, V vocabulary, B bars or buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx
from scipy import sparse

from analysis.features.activations import Chunk, chunks, encode, rows_at_once
from analysis.features.cofiring import CoFiring
from analysis.features.near_copies import originals_in
from analysis.features.row_labels import SHUFFLES, Labels
from analysis.features.streaming import ENTRY, Histogram, TopKPerFeature, counted
from harvest.store import ActivationStore
from harvest.text.hashes import hashed
from sae_jax.models.base import SAE

CONTEXTS, SAMPLE = 20, 100  # kept of each feature: the strongest, and any
BUCKETS = 128  # by which is told over how many documents, tokens or windows the firings of a feature are spread


class FiringAccumulator:
    """What one dictionary's features fire on, while it is counted."""

    def __init__(self, sae: SAE, positions: int, labels: Mapping[str, Labels], seed: int):
        self.graphdef, self.weights = nnx.split(sae)
        features = sae.W_dec.shape[0]
        self.chunk_rows = rows_at_once(features)
        self.count_F = np.zeros(features, np.int64)
        self.sum_F = np.zeros(features)
        self.top = TopKPerFeature(features, CONTEXTS, positions)
        self.sample = TopKPerFeature(features, SAMPLE)
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


def accumulate_firings(
    sae: SAE,
    store: ActivationStore,
    labels: Mapping[str, Labels],
    seed: int,
    on_rows: Callable[[int], None] = lambda n: None,
) -> tuple[FiringAccumulator, dict[str, np.ndarray]]:
    """(on what its features fire, of each set of labels how often each occurs [1 + S, L])."""
    firing, rng = FiringAccumulator(sae, store.train.positions, labels, seed), np.random.default_rng(seed)
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
