"""Directions in the model's activation space: unit rows, random directions, UMAP, principal components.

Shapes: N directions, D width of the model, C components, K neighbours.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np

NEIGHBOURS, MIN_DISTANCE, EPOCHS = 15, 0.0, 500  # with a distance of 0.1, or 200 epochs, small planted clusters merge
NEIGHBOURS_MIB = 128  # memory for the cosines that are computed at a time
FEWEST = 20  # living features that a map needs


def unit(x_NxD: np.ndarray) -> np.ndarray:
    """The rows scaled to norm 1, in float32. Rows of zeros stay zero."""
    x_NxD = np.asarray(x_NxD, np.float32)
    return x_NxD / np.maximum(np.linalg.norm(x_NxD, axis=1, keepdims=True), 1e-30)


def random_like(directions_FxD: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian directions of norm 1, [count, D], with the same second moments as the rows, their mean included."""
    root = np.linalg.qr(directions_FxD, mode="r") / np.sqrt(len(directions_FxD))
    return unit(rng.standard_normal((count, len(root)), np.float32) @ root)


def umap_of(x_NxD: np.ndarray, seed: int) -> np.ndarray:
    """A UMAP layout [N, 2]. Exact neighbours and a single thread make the layout reproducible from the seed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="umap")  # it is about adding new points
        from umap import UMAP

        itself_Nx1 = np.arange(len(x_NxD))[:, None]  # UMAP expects each row as its own first neighbour
        at_NxK, distance_NxK = neighbours(x_NxD, min(NEIGHBOURS, len(x_NxD) - 1) - 1)
        at_NxK, distance_NxK = np.hstack([itself_Nx1, at_NxK]), np.pad(distance_NxK, ((0, 0), (1, 0)))
        layout = UMAP(
            n_neighbors=at_NxK.shape[1],
            min_dist=MIN_DISTANCE,
            n_epochs=EPOCHS,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(at_NxK, distance_NxK),
            force_approximation_algorithm=True,  # else it recomputes all distances for small sets
        )
        return layout.fit_transform(x_NxD)


def neighbours(x_NxD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(row numbers, 1 − cosine) of each row's nearest rows [N, K], nearest first; a row itself is not among them."""
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors

    if count < 1:
        return np.empty((len(x_NxD), 0), np.int64), np.empty((len(x_NxD), 0), np.float32)
    with config_context(working_memory=NEIGHBOURS_MIB):
        distance_NxK, at_NxK = NearestNeighbors(metric="cosine").fit(x_NxD).kneighbors(n_neighbors=count)
    return at_NxK, distance_NxK


def pca_of(x_NxD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(coordinates, shares of the variance) of the first principal components.

    The sign of each component is such that its largest weight is positive.
    """
    x_NxD = x_NxD - x_NxD.mean(0)
    variance_D, axes_DxD = np.linalg.eigh(x_NxD.T @ x_NxD)
    axes_DxC = axes_DxD[:, ::-1][:, :count]
    axes_DxC = axes_DxC * np.sign(axes_DxC[np.abs(axes_DxC).argmax(0), np.arange(axes_DxC.shape[1])])
    return x_NxD @ axes_DxC, variance_D[::-1][:count] / variance_D.sum()


def embed(directions_NxD: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """(a map [N, 2], its method): by UMAP if umap-learn is installed, otherwise by two principal components."""
    if find_spec("umap") is None:
        return pca_of(unit(directions_NxD), 2)[0], "two principal components"
    return umap_of(unit(directions_NxD), seed), "UMAP by cosine"
