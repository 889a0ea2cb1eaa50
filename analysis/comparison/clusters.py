"""A map of the decoder directions, and clusters of similar directions, named after the tokens that they promote.

UMAP (cosine, exact neighbours) places the directions and HDBSCAN clusters the places. Alone, HDBSCAN also finds
clusters in noise. The same is therefore done with random directions of the same covariance:
- A feature stays in its cluster if its cosine to the rest of the cluster is above 95% of those in random clusters.
- A cluster is kept if the mean of these cosines is above that of every random cluster.
Without umap-learn, principal components replace UMAP, and fewer clusters are found.

Shapes: F features, N of them alive, D width of the model, C coordinates.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from analysis.features.contexts import printable
from analysis.geometry import pca_of, random_like, umap_of, unit
from analysis.runs import shapes
from analysis.runs.finished import STUDY_AGAIN
from harvest.errors import InputError
from harvest.files import ARRAYS, read_arrays, write_arrays, write_json
from sae_jax.shapes import check_arrays, read_as, read_shaped

MIN_CLUSTER = 10  # features
COMPONENTS = 100  # principal components to cluster on if UMAP is not installed
QUANTILE, MOST_DRAWS = 0.95, 5
NAME_TOKENS, TOOLTIP_TOKENS = 3, 5
NO_CLUSTER = "no cluster of directions is denser than those among random directions"
WITHOUT_UMAP = "principal components: without umap-learn (pip install 'sae-jax[umap]') fewer clusters are found"


@dataclass(frozen=True)
class Clusters:
    """A map and its clusters. Features that never fire have position NaN and label −1.

    label: the number of a feature's cluster, −1 if it is in none. names, sizes: of the clusters, largest first.
    noise: share of the living features that are in no cluster. floor: the cosine to the rest of its cluster that a
    feature needs. cohesion: the mean of these cosines that a cluster needs. pca_variance: shares of the variance of the
    two principal components.
    """

    xy_Fx2: np.ndarray
    pca_Fx2: np.ndarray
    label_F: np.ndarray
    tokens_F: tuple[str, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    pca_variance: tuple[float, float]
    method: str
    noise: float
    floor: float
    cohesion: float
    alive: int
    dead: int


def compute_clusters(
    decoder_FxD: np.ndarray,
    alive_F: np.ndarray,
    promoted: Sequence[Sequence[str]],
    seed: int = 0,
    min_cluster: int = MIN_CLUSTER,
    use_umap: bool | None = None,
) -> Clusters:
    """Map and cluster the living features. The result is reproducible from the seed.

    `promoted` are the tokens that each feature promotes, strongest first. `use_umap` None means: if it is installed.
    Raises InputError if the shapes do not fit, or if fewer than twice `min_cluster` features are alive.
    """
    if not len(decoder_FxD) == len(alive_F) == len(promoted):
        raise InputError(
            f"{len(decoder_FxD)} directions, {len(alive_F)} truth values and {len(promoted)} lists of tokens: "
            "give one of each for every feature"
        )
    living_N = np.flatnonzero(alive_F)
    if len(living_N) < 2 * min_cluster:
        raise InputError(
            f"a map needs at least {2 * min_cluster} living features, and there are {len(living_N)}: "
            "choose another member"
        )
    with_umap = find_spec("umap") is not None if use_umap is None else use_umap
    promoted = [[printable(token.strip()) for token in tokens] for tokens in promoted]
    x_NxD = unit(decoder_FxD[living_N])
    place = (lambda x_NxD: umap_of(x_NxD, seed)) if with_umap else (lambda x_NxD: pca_of(x_NxD, COMPONENTS)[0])
    placed_NxC, (pca_NxC, variance_C) = place(x_NxD), pca_of(x_NxD, 2)
    raw_N = dense(placed_NxC, min_cluster)
    floor, cohesion = chance(x_NxD, lambda random_NxD: dense(place(random_NxD), min_cluster), min_cluster, seed)
    label_N = trimmed(x_NxD, raw_N, floor, min_cluster)
    kept = np.flatnonzero(cohesions(x_NxD, label_N) > cohesion)
    label_N = by_size(np.where(np.isin(label_N, kept), label_N, -1), min_cluster)

    def for_all(values_N: np.ndarray, empty: float) -> np.ndarray:
        values = np.full((len(alive_F), *values_N.shape[1:]), empty, values_N.dtype)
        values[living_N] = values_N
        return values

    return Clusters(
        xy_Fx2=for_all(placed_NxC[:, :2].astype(np.float32), np.nan),
        pca_Fx2=for_all(pca_NxC.astype(np.float32), np.nan),
        label_F=for_all(label_N, -1),
        tokens_F=tooltips(promoted),
        names=names_of(label_N, [promoted[f] for f in living_N.tolist()]),
        sizes=tuple(int(size) for size in np.bincount(label_N[label_N >= 0])),
        pca_variance=(float(variance_C[0]), float(variance_C[1])),
        method="UMAP" if with_umap else "PCA",
        noise=float((label_N < 0).mean()),
        floor=floor,
        cohesion=cohesion,
        alive=len(living_N),
        dead=len(alive_F) - len(living_N),
    )


def dense(placed_NxC: np.ndarray, min_cluster: int) -> np.ndarray:
    """HDBSCAN's labels [N] of the leaves of its tree, which are the finest clusters; −1 outside of clusters."""
    from sklearn.cluster import HDBSCAN

    return HDBSCAN(min_cluster_size=min_cluster, cluster_selection_method="leaf", copy=True).fit_predict(placed_NxC)


def belonging(x_NxD: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """The cosine of each direction to the mean of the other members of its cluster, [N]; −1 outside of clusters."""
    cosine_N = np.full(len(x_NxD), -1.0)
    for label in range(label_N.max() + 1):
        inside = label_N == label
        cosine_N[inside] = (x_NxD[inside] * unit(x_NxD[inside].sum(0) - x_NxD[inside])).sum(1)
    return cosine_N


def trimmed(x_NxD: np.ndarray, label_N: np.ndarray, floor: float, min_cluster: int) -> np.ndarray:
    """The labels without the features whose cosine to the rest of their cluster is at most `floor`."""
    return by_size(np.where(belonging(x_NxD, label_N) > floor, label_N, -1), min_cluster)


def cohesions(x_NxD: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """For each cluster the mean cosine of its members to the rest of the cluster."""
    inside = label_N >= 0
    return np.bincount(label_N[inside], belonging(x_NxD, label_N)[inside]) / np.bincount(label_N[inside])


def chance(
    x_NxD: np.ndarray, labels_of: Callable[[np.ndarray], np.ndarray], min_cluster: int, seed: int
) -> tuple[float, float]:
    """(95% quantile of the cosines to the own cluster, highest mean cosine of a cluster) in random directions.

    This is the baseline for `trimmed`, from the first draw that has clusters. (0, 0) if no draw has any.
    """
    rng = np.random.default_rng(seed)
    for _ in range(MOST_DRAWS):
        random_NxD = random_like(x_NxD, len(x_NxD), rng)
        label_N = labels_of(random_NxD)
        if (label_N >= 0).any():
            floor = float(np.quantile(belonging(random_NxD, label_N)[label_N >= 0], QUANTILE))
            left = cohesions(random_NxD, trimmed(random_NxD, label_N, floor, min_cluster))
            return floor, float(left.max(initial=0))
    return 0.0, 0.0


def by_size(label_N: np.ndarray, min_cluster: int) -> np.ndarray:
    """The labels renumbered from the largest cluster on. Clusters with fewer than `min_cluster` members become −1."""
    sizes = np.bincount(label_N[label_N >= 0])
    order = [label for label in np.argsort(-sizes, kind="stable") if sizes[label] >= min_cluster]
    renumbered = np.full(len(sizes) + 1, -1)  # the last entry is for label −1
    renumbered[order] = np.arange(len(order))
    return renumbered[label_N]


def names_of(label_N: np.ndarray, promoted: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """A name for each cluster: up to three tokens that at least two members promote, and other features more rarely.

    Tokens are ranked by the log-odds of being promoted, divided by their standard deviation (Monroe et al. 2008, doi
    10.1093/pan/mpn018, with ½ added to the counts). Tokens that differ only in spaces or case count as one, and are
    written in their most frequent form.
    """
    written: dict[str, Counter[str]] = defaultdict(Counter)
    for token in (token.strip() for tokens in promoted for token in tokens):
        written[token.casefold()][token] += 1
    kinds = [{token.strip().casefold() for token in tokens} - {""} for tokens in promoted]
    everywhere = Counter(token for tokens in kinds for token in tokens)
    names = []
    for label in range(label_N.max() + 1):
        members = np.flatnonzero(label_N == label)
        inside = Counter(token for n in members for token in kinds[n])
        score: dict[str, float] = {}
        for token, count in inside.items():
            a, b = count + 0.5, len(members) - count + 0.5
            c = everywhere[token] - count + 0.5
            d = len(label_N) - len(members) - everywhere[token] + count + 0.5
            if count > 1 and a * d > b * c:
                score[token] = float(np.log(a * d / (b * c)) / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d))
        best = sorted(score, key=lambda token: (-score[token], token))[:NAME_TOKENS]
        names.append(" · ".join(written[token].most_common(1)[0][0] for token in best) or "no token in common")
    return tuple(names)


def write_clusters(clusters: Clusters, folder: Path, name: str) -> list[Path]:
    """Write clusters-NAME.json (numbers and names) and clusters-NAME.npz (xy, pca and label of each feature)."""
    record = {k: v for k, v in vars(clusters).items() if not isinstance(v, np.ndarray) and k != "tokens_F"}
    arrays: dict[str, Any] = {"xy_Fx2": clusters.xy_Fx2, "pca_Fx2": clusters.pca_Fx2, "label_F": clusters.label_F}
    written = write_arrays(folder / f"clusters-{name}.npz", arrays, compressed=True)
    write_json(folder / f"clusters-{name}.json", {"schema": 1, ARRAYS: written, **record})
    return [folder / f"clusters-{name}.json", folder / f"clusters-{name}.npz"]


def read_clusters(folder: Path, name: str, promoted: Sequence[Sequence[str]]) -> Clusters | None:
    """The saved clusters, or None if there are none. `promoted` is as for `compute_clusters`."""
    paths = folder / f"clusters-{name}.json", folder / f"clusters-{name}.npz"
    if not all(path.exists() for path in paths):
        return None
    record = read_shaped(paths[0], STUDY_AGAIN, shapes.Clusters)
    if record.pop("schema", None) != 1:
        return None
    arrays: dict[str, Any] = read_arrays(paths[1], STUDY_AGAIN, record.pop(ARRAYS))
    record |= {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
    check_arrays(paths[1], arrays, STUDY_AGAIN, {"F": len(promoted)}, {"label_F": len(record["names"])})
    with read_as(paths[0], STUDY_AGAIN):
        if len(record["names"]) != len(record["sizes"]):
            raise ValueError("it has not as many names as sizes")
        return Clusters(**record, **arrays, tokens_F=tooltips(promoted))


def tooltips(promoted: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(" · ".join(printable(token.strip()) for token in tokens[:TOOLTIP_TOKENS]) for tokens in promoted)
