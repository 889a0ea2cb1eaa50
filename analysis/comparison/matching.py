"""Features of one dictionary matched one-to-one to another's, by direction or by activation on the same rows.

The assignment is the one of the largest total similarity over pairs of at least FLOOR (Hungarian algorithm); a pair
under it is nobody's match. Features linked by no such pair never compete, so that each connected component is solved by
itself: exact, seconds at F 4,608, and memory of SLICE × F numbers where the components are small.

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

from analysis.geometry import slices_of, unit
from harvest.errors import InputError

if TYPE_CHECKING:
    from harvest.store import Split
    from sae_jax.models.base import SAE

FLOOR, STEP = 0.3, 0.1
LARGEST = 6000  # features of a component on one side: 290 MB, and half a minute
CHUNK_ROWS, ROWS = 4096, 65_536


@dataclass(frozen=True)
class Decoder:
    """A member's directions; `settings` as `families.settings_of` gives them.

    Features that never fire are left out of all that follows.

    Raises InputError where the shapes do not fit or nothing is alive.
    """

    settings: Mapping[str, Any]
    W_dec_FxD: np.ndarray
    alive_F: np.ndarray

    def __post_init__(self) -> None:
        if self.alive_F.shape != self.W_dec_FxD.shape[:1] or self.alive_F.dtype != bool:
            raise InputError(f"a decoder {self.W_dec_FxD.shape} needs one truth value a feature: {self.alive_F.shape}")
        if not self.alive_F.any():
            raise InputError("none of its features ever fires: there is nothing to compare")

    @property
    def directions(self) -> np.ndarray:
        """Of norm 1, float32, of the living features only; `np.flatnonzero(alive_F)` tells which they are."""
        return unit(self.W_dec_FxD[self.alive_F])


@dataclass(frozen=True)
class Similarity:
    """The pairs of at least FLOOR, and the best value of each feature whatever it is."""

    pairs_FxG: csr_array
    best_F: np.ndarray
    best_G: np.ndarray


def cosines(a_FxD: np.ndarray, b_GxD: np.ndarray) -> Similarity:
    """Of rows of norm 1, a slice of F at a time. Raises InputError for directions of models of other widths."""
    if a_FxD.shape[1] != b_GxD.shape[1]:
        raise InputError(f"directions in {a_FxD.shape[1]} and {b_GxD.shape[1]} dimensions cannot be compared")
    return gathered(a_FxD[s] @ b_GxD.T for s in slices_of(len(a_FxD)))


def correlations(a_NxF: csr_array, b_NxG: csr_array) -> Similarity:
    """Pearson's r of activations on the same rows, from sparse sums in float64; 0 of a feature that is constant."""
    n = a_NxF.shape[0]
    mean_F, scale_F = moments(a_NxF)
    mean_G, scale_G = moments(b_NxG)
    a_NxF, b_NxG = csc_array(a_NxF, dtype=np.float64), csr_array(b_NxG, dtype=np.float64)
    return gathered(
        ((a_NxF[:, s].T @ b_NxG).toarray() / n - np.outer(mean_F[s], mean_G)) * np.outer(scale_F[s], scale_G)
        for s in slices_of(a_NxF.shape[1])
    )


def moments(a_NxF: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """(means, 1 / deviations or 0 where there is none) of the columns."""
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
    """(F's, G's, similarity) of the matched pairs [P].

    Where a component has over LARGEST features on a side its weakest pairs are let go, STEP by STEP, until it falls
    apart: nothing changes at a threshold above.
    """
    n_f = pairs_FxG.shape[0]
    graph = block_array([[None, pairs_FxG], [pairs_FxG.T, None]], format="csr")
    _, component = connected_components(graph, directed=False)
    order = np.argsort(component, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(component))[:-1])
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for nodes in (nodes for nodes in members if len(nodes) > 1):
        f, g = nodes[nodes < n_f], nodes[nodes >= n_f] - n_f
        own = pairs_FxG[f][:, g]
        if max(own.shape) > LARGEST and floor + STEP < 1:
            own.data[own.data < floor + STEP] = 0
            own.eliminate_zeros()
            row, column, value = match(own, floor + STEP)
        else:
            dense = own.toarray()
            row, column = linear_sum_assignment(dense, maximize=True)
            value = dense[row, column]
        found.append((f[row[value > 0]], g[column[value > 0]], value[value > 0]))
    f_P, g_P, value_P = (np.concatenate(part) for part in zip(*found, strict=True))
    return f_P, g_P, value_P


def spread_rows(split: Split, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Up to so many rows of a split, in chunks that lie evenly over it."""
    chunks = -(-len(split) // CHUNK_ROWS)
    for chunk in np.unique(np.linspace(0, chunks - 1, min(chunks, max(1, rows // CHUNK_ROWS))).round().astype(int)):
        yield split.read(int(chunk) * CHUNK_ROWS, (int(chunk) + 1) * CHUNK_ROWS)


def sparse_activations(chunks: Iterable[np.ndarray], saes: Mapping[str, SAE]) -> dict[str, csr_array]:
    """What fires on the rows of one site, by all its members in one pass; float32 [N, F].

    Memory: 8 bytes an active feature, so 17 MB a member for ROWS rows at L0 32; one dense chunk besides.
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
        raise InputError("there are no rows to compare activations on")
    return {name: vstack(pieces, format="csr") for name, pieces in fired.items()}
