"""One-to-one matching of the features of two dictionaries, by direction or by activation on the same rows.

The matching has the largest total similarity over pairs with a similarity of at least FLOOR (Hungarian algorithm).
Other pairs are never matched, so each connected component of the graph of pairs is solved on its own. This is exact. It
takes seconds for 4,608 features, and memory for SLICE × F numbers if the components are small.

Shapes: N rows, F and G features of two dictionaries, D width of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import block_array, csc_array, csr_array, vstack
from scipy.sparse.csgraph import connected_components

from analysis.geometry import unit
from harvest.errors import InputError

if TYPE_CHECKING:
    from harvest.store import Split
    from sae_jax.models.base import SAE

FLOOR, STEP = 0.3, 0.1
LARGEST = 6000  # features of a component on one side, at most: 290 MB and half a minute
SLICE = 1024  # features at a time
CHUNK_ROWS, ROWS = 4096, 65_536


@dataclass(frozen=True)
class Decoder:
    """A member's decoder rows and its settings (from `families.settings_of`).

    Features that never fire are left out of all comparisons. Raises InputError if the shapes do not fit, or if no
    feature ever fires.
    """

    settings: Mapping[str, Any]
    W_dec_FxD: np.ndarray
    alive_F: np.ndarray

    def __post_init__(self) -> None:
        if self.alive_F.shape != self.W_dec_FxD.shape[:1] or self.alive_F.dtype != bool:
            raise InputError(
                f"alive_F has shape {self.alive_F.shape} and type {self.alive_F.dtype}: it must have one bool for each "
                f"row of the decoder {self.W_dec_FxD.shape}"
            )
        if not self.alive_F.any():
            raise InputError("a dictionary whose features never fire cannot be compared: leave it out")

    @property
    def directions(self) -> np.ndarray:
        """The decoder rows of the living features (`np.flatnonzero(alive_F)`) scaled to norm 1, float32."""
        return unit(self.W_dec_FxD[self.alive_F])


@dataclass(frozen=True)
class Similarity:
    """The similarities of at least FLOOR, and the highest similarity of each feature even if it is below FLOOR."""

    pairs_FxG: csr_array
    best_F: np.ndarray
    best_G: np.ndarray


def cosines(a_FxD: np.ndarray, b_GxD: np.ndarray) -> Similarity:
    """Cosines of rows of norm 1, computed in slices. Raises InputError for directions of different widths."""
    if a_FxD.shape[1] != b_GxD.shape[1]:
        raise InputError(
            f"directions in {a_FxD.shape[1]} and {b_GxD.shape[1]} dimensions cannot be compared: give dictionaries of "
            "the same model"
        )
    return gathered(a_FxD[s] @ b_GxD.T for s in slices_of(len(a_FxD)))


def correlations(a_NxF: csr_array, b_NxG: csr_array) -> Similarity:
    """Pearson's r of activations on the same rows, from sparse sums in float64. It is 0 for a constant feature."""
    n = a_NxF.shape[0]
    mean_F, scale_F = moments(a_NxF)
    mean_G, scale_G = moments(b_NxG)
    a_NxF, b_NxG = csc_array(a_NxF, dtype=np.float64), csr_array(b_NxG, dtype=np.float64)
    return gathered(
        ((a_NxF[:, s].T @ b_NxG).toarray() / n - np.outer(mean_F[s], mean_G)) * np.outer(scale_F[s], scale_G)
        for s in slices_of(a_NxF.shape[1])
    )


def moments(a_NxF: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """(means, 1 / standard deviations) of the columns; 0 instead of the latter for a constant column."""
    mean_F = np.asarray(a_NxF.sum(0, dtype=np.float64)) / a_NxF.shape[0]
    square_F = np.asarray(a_NxF.astype(np.float64).power(2).sum(0)) / a_NxF.shape[0]
    variance_F = square_F - mean_F**2
    varies_F = variance_F > 1e-9 * square_F
    return mean_F, np.where(varies_F, 1 / np.sqrt(np.where(varies_F, variance_F, 1)), 0)


def gathered(slices: Iterable[np.ndarray]) -> Similarity:
    pairs, best, best_G = [], [], np.array(-np.inf)
    for similarity_SxG in slices:
        row, column = np.nonzero(similarity_SxG >= FLOOR)
        pairs.append(csr_array((similarity_SxG[row, column], (row, column)), shape=similarity_SxG.shape))
        best.append(similarity_SxG.max(1))
        best_G = np.maximum(best_G, similarity_SxG.max(0))
    return Similarity(vstack(pairs, format="csr"), np.concatenate(best), best_G)


def match(pairs_FxG: csr_array, floor: float = FLOOR) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(feature of F, feature of G, similarity) of the matched pairs, [P] each.

    If a component has more than LARGEST features on a side, its weakest pairs are dropped by raising the floor in steps
    of STEP until it falls apart. Pairs above the raised floor are not dropped.
    """
    n_f = pairs_FxG.shape[0]
    graph = block_array([[None, pairs_FxG], [pairs_FxG.T, None]], format="csr")
    _, component = connected_components(graph, directed=False)
    order = np.argsort(component, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(component))[:-1])
    matched = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for nodes in (nodes for nodes in members if len(nodes) > 1):
        f, g = nodes[nodes < n_f], nodes[nodes >= n_f] - n_f
        pairs = pairs_FxG[f][:, g]
        if max(pairs.shape) > LARGEST and floor + STEP < 1:
            pairs.data[pairs.data < floor + STEP] = 0
            pairs.eliminate_zeros()
            row, column, value = match(pairs, floor + STEP)
        else:
            dense = pairs.toarray()
            row, column = linear_sum_assignment(dense, maximize=True)
            value = dense[row, column]
        matched.append((f[row[value > 0]], g[column[value > 0]], value[value > 0]))
    f_P, g_P, value_P = (np.concatenate(part) for part in zip(*matched, strict=True))
    return f_P, g_P, value_P


def spread_rows(split: Split, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Yield at most `rows` rows of a split, in chunks that are spread evenly over it."""
    chunks = -(-len(split) // CHUNK_ROWS)
    for chunk in np.unique(np.linspace(0, chunks - 1, min(chunks, max(1, rows // CHUNK_ROWS))).round().astype(int)):
        yield split.read(int(chunk) * CHUNK_ROWS, (int(chunk) + 1) * CHUNK_ROWS)


def sparse_activations(chunks: Iterable[np.ndarray], saes: Mapping[str, SAE]) -> dict[str, csr_array]:
    """The activations of all members of a site on its rows, sparse float32 [N, F], in one pass over the rows.

    Memory: 8 bytes per active feature, which is 17 MB per member for ROWS rows at L0 32, and one dense chunk.
    """
    from flax import nnx

    from analysis.features.activations import encode

    parts = {name: nnx.split(sae) for name, sae in saes.items()}
    fired: dict[str, list[csr_array]] = {name: [] for name in saes}
    for chunk_NxD in chunks:
        x_NxD = np.asarray(chunk_NxD, np.float32)
        for name, part in parts.items():
            fired[name].append(csr_array(np.asarray(encode(*part, x_NxD))))
    if not all(fired.values()):
        raise InputError("there are no rows to compare activations on: harvest more text")
    return {name: vstack(pieces, format="csr") for name, pieces in fired.items()}


def slices_of(count: int) -> Iterator[slice]:
    return (slice(start, min(start + SLICE, count)) for start in range(0, count, SLICE))
