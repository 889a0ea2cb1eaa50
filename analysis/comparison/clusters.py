"""Which features point alike? A map of the decoder's directions, and their clusters, named by what they promote.

UMAP (cosine, exact neighbours) and HDBSCAN on its map, which alone would see clusters in noise. So the same is done to
random directions with the same covariance. A feature belongs to its cluster if its cosine to the rest of it is more
than 95% of those had, and a cluster counts if the mean of these cosines is more than that of any of theirs. Without
umap-learn both are done on principal components, which finds fewer.

Shapes: F features, N of them alive, D width of the model, K neighbours.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from analysis.comparison.matching import random_like, slices_of
from analysis.plots.style import KIND_STYLES, printable, styled
from analysis.quality.ground_truth import unit
from analysis.runs import shapes
from analysis.runs.finished import STUDY_AGAIN
from harvest.errors import InputError
from harvest.files import ARRAYS, read_arrays, write_arrays, write_json
from sae_jax.shapes import check_arrays, read_as, read_shaped

NEIGHBOURS, MIN_DISTANCE, EPOCHS = 15, 0.0, 500  # with 0.1, or 200 epochs, small planted clusters run together
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


def compute(
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


def umap_of(x_NxD: np.ndarray, seed: int) -> np.ndarray:
    """Two dimensions. Neighbours are exact and the layout has one thread, so that a seed says everything."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=UserWarning, module="umap"
        )  # it cannot place further points: none come
        from umap import UMAP

        at_NxK, distance_NxK = neighbours(x_NxD, min(NEIGHBOURS, len(x_NxD) - 1))
        layout = UMAP(
            n_neighbors=at_NxK.shape[1],
            min_dist=MIN_DISTANCE,
            n_epochs=EPOCHS,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(at_NxK, distance_NxK),
            force_approximation_algorithm=True,  # else it computes all distances of small sets anew
        )
        return layout.fit_transform(x_NxD)


def neighbours(x_NxD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, 1 − cosine) of the nearest, itself first, as UMAP expects."""

    def sliced() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for s in slices_of(len(x_NxD)):
            cosine_SxN = x_NxD[s] @ x_NxD.T
            cosine_SxN[np.arange(len(cosine_SxN)), np.arange(s.start, s.stop)] = 2  # first, whatever its twins have
            at_SxK = np.argpartition(-cosine_SxN, count - 1, axis=1)[:, :count]
            nearest = np.argsort(-np.take_along_axis(cosine_SxN, at_SxK, 1), axis=1, kind="stable")
            at_SxK = np.take_along_axis(at_SxK, nearest, 1)
            yield at_SxK, np.maximum(1 - np.minimum(np.take_along_axis(cosine_SxN, at_SxK, 1), 1), 0)

    at, distance = zip(*sliced(), strict=True)
    return np.concatenate(at), np.concatenate(distance).astype(np.float32)


def pca_of(x_NxD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(coordinates, shares of the variance) of principal components, each signed so that its largest weight is > 0."""
    x_NxD = x_NxD - x_NxD.mean(0)
    variance_D, axes_DxD = np.linalg.eigh(x_NxD.T @ x_NxD)
    axes_DxC = axes_DxD[:, ::-1][:, :count]
    axes_DxC = axes_DxC * np.sign(axes_DxC[np.abs(axes_DxC).argmax(0), np.arange(axes_DxC.shape[1])])
    return x_NxD @ axes_DxC, variance_D[::-1][:count] / variance_D.sum()


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


def write(clusters: Clusters, folder: Path, name: str) -> list[Path]:
    """clusters-NAME.json (figures, names) and .npz (xy, pca, label of each feature)."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {k: v for k, v in vars(clusters).items() if not isinstance(v, np.ndarray) and k != "tokens_F"}
    arrays: dict[str, Any] = {"xy_Fx2": clusters.xy_Fx2, "pca_Fx2": clusters.pca_Fx2, "label_F": clusters.label_F}
    written = write_arrays(folder / f"clusters-{name}.npz", arrays, compressed=True)
    write_json(folder / f"clusters-{name}.json", {"schema": 1, ARRAYS: written, **record})
    return [folder / f"clusters-{name}.json", folder / f"clusters-{name}.npz"]


def read(folder: Path, name: str, promoted: Sequence[Sequence[str]]) -> Clusters | None:
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


def figure(clusters: Clusters, shown: int = 10) -> Any:
    """An Altair scatter, the largest clusters (10 at most) coloured, numbered and named, the others grey."""
    import altair as alt

    colours = [colour for colour, _ in KIND_STYLES.values()][:shown]
    legend = [
        f"{i + 1}  {name} ({size})" for i, (name, size) in enumerate(zip(clusters.names, clusters.sizes, strict=True))
    ]
    legend = legend[: len(colours)]
    rest = [size for size in clusters.sizes[len(legend) :]]
    others = [f"{len(rest)} smaller clusters ({sum(rest)})"] if rest else []
    none = f"in no cluster ({round(clusters.noise * clusters.alive)})"
    domain = [*legend, *others, none]
    rows = [
        {
            "x": float(clusters.xy_Fx2[f, 0]),
            "y": float(clusters.xy_Fx2[f, 1]),
            "feature": int(f),
            "promotes": clusters.tokens_F[f],
            "cluster": none if label < 0 else (legend[label] if label < len(legend) else others[0]),
            "rank": -1 if label < 0 else 1 if label < len(legend) else 0,
        }
        for f, label in enumerate(clusters.label_F)
        if not np.isnan(clusters.xy_Fx2[f, 0])
    ]
    rows.sort(key=lambda row: row["rank"])  # what is coloured is drawn last, on top
    middles = [
        {"x": float(x), "y": float(y), "number": str(label + 1)}
        for label in range(len(legend))
        for x, y in [np.median(clusters.xy_Fx2[clusters.label_F == label], axis=0)]
    ]
    colour = alt.Color("cluster:N", title=None).scale(
        domain=domain, range=[*colours[: len(legend)], *["#9a9a9a"] * len(others), "#dcdcdc"]
    )
    colour = colour.legend(orient="bottom", columns=2, labelLimit=300, symbolSize=90, symbolOpacity=1)
    axes = (axis.scale(zero=False, nice=False, padding=12).axis(None) for axis in (alt.X("x:Q"), alt.Y("y:Q")))
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("feature", "promotes", "cluster")]
    points = alt.Chart(alt.Data(values=rows)).mark_circle(size=28 if len(rows) < 5000 else 12, opacity=0.85)
    points = points.encode(*axes, color=colour, tooltip=tooltip)
    numbers = alt.Chart(alt.Data(values=middles)).encode(x="x:Q", y="y:Q", text="number:N")
    halo = numbers.mark_text(fontSize=14, fontWeight="bold", stroke="white", strokeWidth=4, strokeJoin="round")
    ink = numbers.mark_text(fontSize=14, fontWeight="bold", color="#111111")
    alive = f"{clusters.alive:,} living features" + (
        f", {clusters.dead:,} that never fire left out" if clusters.dead else ""
    )
    counted = "1 cluster" if len(clusters.names) == 1 else f"{len(clusters.names)} clusters"
    how = "UMAP by cosine" if clusters.method == "UMAP" else WITHOUT_UMAP
    subtitle = [f"{alive}; {counted}; named by the tokens that they promote", how]
    return styled(alt.layer(points, halo, ink).properties(width=640, height=460), "Directions of features", subtitle)
