"""Which features fire on the same rows, in bounded memory at any width.

Up to MATRIX_BYTES all pairs are counted on all rows, in one matrix. For a wider dictionary (over 8192 features) whole
rows of firings are kept, all of them or as many as MOST_FIRINGS allow, drawn at random, and pairs are counted at the
end, a block of features at a time: 16 bytes a firing kept, and what a block takes.

Shapes: N rows, F features, B of a block.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

MATRIX_BYTES = 1 << 28
MOST_FIRINGS = 1 << 25  # kept, of a wider dictionary: at 40 a row 840,000 rows
MIN_TOGETHER = 10  # firings of both that make two features fire together


class CoFiring:
    """`rows` and `count_F` are of the rows on which pairs are counted: all, or those that were drawn."""

    def __init__(self, features: int, seed: int):
        self.features, self.rng = features, np.random.default_rng(seed)
        self.rows, self.count_F = 0, np.zeros(features, np.int64)
        is_small = 4 * features**2 <= MATRIX_BYTES
        self.matrix_FxF = np.zeros((features, features), np.int32) if is_small else None
        self.kept = sparse.csr_array((0, features), dtype=np.int32)
        self.pending: list[sparse.csr_array] = []
        self.key_N, self.share = np.empty(0), 1.0  # a row is kept where its key is under the share of rows to keep

    def add(self, fires_NxF: sparse.csr_array) -> None:
        if self.matrix_FxF is not None:
            both = (fires_NxF.T @ fires_NxF).tocoo()
            self.matrix_FxF[both.coords] += both.data
            self.rows += fires_NxF.shape[0]
            self.count_F += np.bincount(fires_NxF.indices, minlength=self.features)
            return
        key_N = self.rng.random(fires_NxF.shape[0])
        self.pending.append(fires_NxF[key_N < self.share])
        self.key_N = np.concatenate([self.key_N, key_N[key_N < self.share]])
        while self.kept.nnz + sum(of.nnz for of in self.pending) > MOST_FIRINGS:
            self.share /= 2
            self.kept, self.pending = sparse.vstack([self.kept, *self.pending], format="csr"), []
            self.kept, self.key_N = self.kept[self.key_N < self.share], self.key_N[self.key_N < self.share]

    def counted(self) -> CoFiring:
        """Itself, once all rows were added."""
        if self.matrix_FxF is None:
            self.kept, self.pending = sparse.vstack([self.kept, *self.pending], format="csr"), []
            self.by_feature_FxN = self.kept.T.tocsr()
            self.rows, self.count_F = self.kept.shape[0], np.diff(self.by_feature_FxN.indptr).astype(np.int64)
        return self

    def together(self, block: slice) -> np.ndarray:
        """On how many rows each feature of the block fires with each other one, [B, F]; its own firings with itself."""
        if self.matrix_FxF is not None:
            return self.matrix_FxF[block]
        return (self.by_feature_FxN[block] @ self.kept).toarray()

    def phi(self, block: slice) -> np.ndarray:
        """Correlation of firing, [B, F]; 0 for features that fire on fewer than MIN_TOGETHER rows together."""
        both_BxF = self.together(block).astype(np.float64)
        share_F = self.count_F / max(self.rows, 1)
        spread_F = np.sqrt(share_F * (1 - share_F))
        with np.errstate(divide="ignore", invalid="ignore"):
            phi_BxF = (both_BxF / self.rows - share_F[block, None] * share_F) / (spread_F[block, None] * spread_F)
        return np.where(both_BxF >= MIN_TOGETHER, np.nan_to_num(phi_BxF, posinf=0, neginf=0), 0)
