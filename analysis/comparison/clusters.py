"""Which features point alike? A map of the decoder's directions, and their clusters, named by what they promote.

UMAP (cosine, exact neighbours) and HDBSCAN on its map, which alone would see clusters in noise. So the same is done to
random directions with the same covariance. A feature belongs to its cluster if its cosine to the rest of it is more
than 95% of those had, and a cluster counts if the mean of these cosines is more than that of any of theirs. Without
umap-learn both are done on principal components, which finds fewer.

Shapes: F features, N of them alive, D width of the model, K neighbours.
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
COMPONENTS = 100  # clustered on, where there is no UMAP
QUANTILE, MOST_DRAWS = 0.95, 5
NAME_TOKENS, TOOLTIP_TOKENS = 3, 5
WITHOUT_UMAP = "principal components: without umap-learn (pip install 'sae-jax[umap]') fewer clusters are found"


@dataclass(frozen=True)
class Clusters:
    """Positions are NaN, labels −1 for features that never fire; label −1 also for what is in no cluster.

    names, sizes: of the clusters, largest first. noise: share of living features in none. floor: the cosine to the rest
    of its cluster that a feature needs; cohesion: the mean of these that a cluster needs. pca_variance: shares of the
    variance that the two components have.
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
    """Of living features; `promoted` are the tokens that each promotes, strongest first. The same for the same seed.

    `use_umap`: None is where it is installed. Raises InputError where shapes do not fit, or fewer than twice
    `min_cluster` features are alive.
    """
    if not len(decoder_FxD) == len(alive_F) == len(promoted):
        raise InputError(
            f"{len(decoder_FxD)} directions, {len(alive_F)} truth values and {len(promoted)} lists of tokens"
        )
    living_N = np.flatnonzero(alive_F)
    if len(living_N) < 2 * min_cluster:
        raise InputError(f"a map needs {2 * min_cluster} living features or more; there are {len(living_N)}")
    with_umap = find_spec("umap") is not None if use_umap is None else use_umap
    promoted = [[printable(token.strip()) for token in own] for own in promoted]
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
    """HDBSCAN's labels, of its leaves: the finest clusters."""
    from sklearn.cluster import HDBSCAN

    return HDBSCAN(min_cluster_size=min_cluster, cluster_selection_method="leaf", copy=True).fit_predict(placed_NxC)


def belonging(x_NxD: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Cosine of each to the mean of the other members of its cluster; −1 outside of clusters."""
    cosine_N = np.full(len(x_NxD), -1.0)
    for label in range(label_N.max() + 1):
        own = label_N == label
        cosine_N[own] = (x_NxD[own] * unit(x_NxD[own].sum(0) - x_NxD[own])).sum(1)
    return cosine_N


def trimmed(x_NxD: np.ndarray, label_N: np.ndarray, floor: float, min_cluster: int) -> np.ndarray:
    return by_size(np.where(belonging(x_NxD, label_N) > floor, label_N, -1), min_cluster)


def cohesions(x_NxD: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Of each cluster the mean cosine of its members to the rest of it."""
    inside = label_N >= 0
    return np.bincount(label_N[inside], belonging(x_NxD, label_N)[inside]) / np.bincount(label_N[inside])


def chance(
    x_NxD: np.ndarray, labels_of: Callable[[np.ndarray], np.ndarray], min_cluster: int, seed: int
) -> tuple[float, float]:
    """(floor, highest cohesion) that random directions have: of the first draw in which clusters are seen, or zeros."""
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
    """Clusters that still have so many members, numbered from the largest."""
    sizes = np.bincount(label_N[label_N >= 0])
    order = [label for label in np.argsort(-sizes, kind="stable") if sizes[label] >= min_cluster]
    renumbered = np.full(len(sizes) + 1, -1)  # the last is that of −1
    renumbered[order] = np.arange(len(order))
    return renumbered[label_N]


def names_of(label_N: np.ndarray, promoted: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Of each cluster up to three tokens that two or more of its members promote, and the rest do more rarely.

    By the log-odds of promoting it, in units of its deviation (Monroe et al. 2008, doi 10.1093/pan/mpn018, with counts
    of ½ added). Tokens that differ in spaces or case are one, written as it is most often.
    """
    written: dict[str, Counter[str]] = defaultdict(Counter)
    for token in (token.strip() for own in promoted for token in own):
        written[token.casefold()][token] += 1
    kinds = [{token.strip().casefold() for token in own} - {""} for own in promoted]
    everywhere = Counter(token for own in kinds for token in own)
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
    """clusters-NAME.json (figures, names) and .npz (xy, pca, label of each feature)."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {k: v for k, v in vars(clusters).items() if not isinstance(v, np.ndarray) and k != "tokens_F"}
    arrays: dict[str, Any] = {"xy_Fx2": clusters.xy_Fx2, "pca_Fx2": clusters.pca_Fx2, "label_F": clusters.label_F}
    written = write_arrays(folder / f"clusters-{name}.npz", arrays, compressed=True)
    write_json(folder / f"clusters-{name}.json", {"schema": 1, ARRAYS: written, **record})
    return [folder / f"clusters-{name}.json", folder / f"clusters-{name}.npz"]


def read_clusters(folder: Path, name: str, promoted: Sequence[Sequence[str]]) -> Clusters | None:
    """What `write` left, with the tokens that each feature promotes, as for `compute`; None where there is nothing."""
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
            raise ValueError("as many names as sizes are needed")
        return Clusters(**record, **arrays, tokens_F=tooltips(promoted))


def tooltips(promoted: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(" · ".join(printable(token.strip()) for token in own[:TOOLTIP_TOKENS]) for own in promoted)
