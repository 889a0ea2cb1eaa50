"""Pairs of features that fire on the same rows, found in bounded memory at any width.

If a matrix of all pairs fits into MATRIX_BYTES, pairs are counted on all rows. For a wider dictionary (more than 8192
features), the firings of whole rows are kept, of all rows or of a random sample with MOST_FIRINGS firings. Pairs are
then counted at the end, a block of features at a time. Memory: 16 bytes per kept firing, and the block.

Shapes: N rows or pairs, F features, B features of a block, J other features.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

MATRIX_BYTES = 1 << 28
MOST_FIRINGS = 1 << 25  # firings to keep of a wider dictionary, at most: 840,000 rows with 40 firings each
BLOCK_PAIRS = 1 << 24  # pairs to count at a time, at most
MIN_TOGETHER = 10  # rows on which two features must both fire to count as firing together


class CoFiring:
    """A counter of pairs. `rows` and `count_F` are of the rows on which pairs are counted: all rows or the sample."""

    def __init__(self, features: int, seed: int):
        self.features, self.rng = features, np.random.default_rng(seed)
        self.rows, self.count_F = 0, np.zeros(features, np.int64)
        is_small = 4 * features**2 <= MATRIX_BYTES
        self.matrix_FxF = np.zeros((features, features), np.int32) if is_small else None
        self.kept = sparse.csr_array((0, features), dtype=np.int32)
        self.pending: list[sparse.csr_array] = []
        self.key_N, self.share = np.empty(0), 1.0  # a row is kept if its random key is below the share of rows to keep

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
        while self.kept.nnz + sum(rows.nnz for rows in self.pending) > MOST_FIRINGS:
            self.share /= 2
            self.kept, self.pending = sparse.vstack([self.kept, *self.pending], format="csr"), []
            self.kept, self.key_N = self.kept[self.key_N < self.share], self.key_N[self.key_N < self.share]

    def counted(self) -> CoFiring:
        """Finish counting after all rows were added. Returns itself."""
        if self.matrix_FxF is None:
            self.kept, self.pending = sparse.vstack([self.kept, *self.pending], format="csr"), []
            self.by_feature_FxN = self.kept.T.tocsr()
            self.rows, self.count_F = self.kept.shape[0], np.diff(self.by_feature_FxN.indptr).astype(np.int64)
        return self

    def together(self, block: slice) -> sparse.coo_array:
        """The number of rows on which each feature of a block fires together with each feature, [B, F]."""
        if self.matrix_FxF is not None:
            return sparse.coo_array(self.matrix_FxF[block])
        return (self.by_feature_FxN[block] @ self.kept).tocoo()

    def closest(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """(the features whose firing correlates most with each feature's, their correlation phi), [F, most] each.

        Only features count that fire together on MIN_TOGETHER rows and with phi above 0. The rest is −1 and 0.
        """
        other_FxJ, phi_FxJ = np.full((self.features, most), -1), np.zeros((self.features, most), np.float32)
        share_F = self.count_F / max(self.rows, 1)
        spread_F = np.sqrt(share_F * (1 - share_F))
        size = max(1, BLOCK_PAIRS // self.features)
        for first in range(0, self.features, size):
            both = self.together(slice(first, first + size))
            i_N, j_N = both.coords[0] + first, both.coords[1]
            is_pair_N = (both.data >= MIN_TOGETHER) & (i_N != j_N) & (spread_F[i_N] * spread_F[j_N] > 0)
            i_N, j_N, share_N = i_N[is_pair_N], j_N[is_pair_N], both.data[is_pair_N] / self.rows
            phi_N = (share_N - share_F[i_N] * share_F[j_N]) / (spread_F[i_N] * spread_F[j_N])
            order_N = np.lexsort((j_N, -phi_N, i_N))
            i_N, j_N, phi_N = i_N[order_N], j_N[order_N], phi_N[order_N]
            rank_N = np.arange(len(i_N)) - np.searchsorted(i_N, i_N)
            is_close_N = (rank_N < most) & (phi_N > 0)
            place = i_N[is_close_N], rank_N[is_close_N]
            other_FxJ[place], phi_FxJ[place] = j_N[is_close_N], phi_N[is_close_N]
        return other_FxJ, phi_FxJ
