"""Features that dictionaries of different kinds, widths and seeds share, and features that every seed finds.

Two features count as the same if they are matched one-to-one (`matching.py`) with a similarity of THRESHOLD or more.
The similarity is the cosine of their decoder rows or the correlation of their activations. How many features would
match by chance is measured with random directions of the same covariance.

Shapes: M members, F features of a member, P pairs, N rows, D width of the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from analysis.comparison.matching import Decoder, correlations, cosines, match
from analysis.geometry import random_like, unit
from analysis.runs import families, shapes
from analysis.runs.families import Spread
from analysis.runs.finished import STUDY_AGAIN
from harvest.errors import InputError
from harvest.files import ARRAYS, read_arrays, write_arrays, write_json
from sae_jax.shapes import check_arrays, read_as, read_shaped

SCHEMA = 2
THRESHOLD = 0.7  # the value of Leask et al. 2025 (arXiv 2502.04878) and Paulo and Belrose 2025 (arXiv 2501.16615)


@dataclass(frozen=True)
class PairGroup:
    """Pairs of members that differ in the same settings. A pair's number is the mean of entries [i, j] and [j, i]."""

    differ: str
    pairs: int
    shared: Spread
    chance: Spread
    mmcs: Spread
    shared_by_activation: Spread | None


@dataclass(frozen=True)
class Comparison:
    """The comparison of all members. Entry [i, j] of a matrix is about the living features of member i in member j.

    shared: share of i's features matched in j with a cosine of `threshold` or more.
    chance: the same share for random directions with the covariance of i's directions.
    mmcs: mean max cosine similarity, the mean over i's features of the highest cosine in j.
    matched_cosine: mean cosine over min(F_i, F_j) pairs; a missing pair counts as 0.
    shared_by_activation: share matched by Pearson's r of activations on `rows` rows; None without activations.
    confirmed: share of the pairs shared by direction whose r is `threshold` or more; NaN without such pairs.

    partner, cosine: each feature's match in each other member, and its cosine; -1 and 0 without a match.
    found_again: in how many other seeds with the same settings each feature has a cosine of `threshold` or more. Only
    members with other seeds have it; `other_seeds` is their number.
    Members in `dead` have no living feature and are not compared.
    """

    members: tuple[str, ...]
    dead: tuple[str, ...]
    labels: tuple[str, ...]
    alive: tuple[int, ...]
    threshold: float
    shared_MxM: np.ndarray
    chance_MxM: np.ndarray
    mmcs_MxM: np.ndarray
    matched_cosine_MxM: np.ndarray
    rows: int
    shared_by_activation_MxM: np.ndarray | None
    confirmed_MxM: np.ndarray | None
    groups: tuple[PairGroup, ...]
    partner_FxM: dict[str, np.ndarray]
    cosine_FxM: dict[str, np.ndarray]
    found_again_F: dict[str, np.ndarray]
    other_seeds: dict[str, int]


def compute_shared_features(
    decoders: Mapping[str, Decoder],
    activations: Mapping[str, csr_array] | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    dead: Sequence[str] = (),
) -> Comparison:
    """Compare all pairs of two or more members.

    `activations` [N, F] are those of `sparse_activations`, on the same rows for all members. `dead` are the ids of
    further members whose features never fire. Raises InputError for fewer than two members, for a member given twice,
    for models of different widths, and for activations that do not fit.
    """
    ids, m = tuple(decoders), len(decoders)
    if m < 2:
        raise InputError("a comparison needs two or more members: train with several --seed or --activation")
    check(decoders, activations)
    shared, chance, mmcs, matched = np.eye(m), np.zeros((m, m)), np.eye(m), np.eye(m)
    by_activation, confirmed = np.eye(m), np.eye(m)
    partner = {name: np.full((len(d.alive_F), m), -1, np.int32) for name, d in decoders.items()}
    cosine = {name: np.zeros((len(d.alive_F), m), np.float32) for name, d in decoders.items()}
    rng, done = np.random.default_rng(seed), 0
    for i, a in enumerate(ids):
        directions_FxD, living_F = decoders[a].directions, np.flatnonzero(decoders[a].alive_F)
        random_FxD = random_like(directions_FxD, len(living_F), rng)
        for j, b in enumerate(ids):
            other_GxD, living_G = decoders[b].directions, np.flatnonzero(decoders[b].alive_F)
            chance[i, j] = share(match(cosines(random_FxD, other_GxD).pairs_FxG)[2], threshold, len(living_F))
            done += 1
            on_progress(done, m * m)
            if j <= i:
                continue
            similarity = cosines(directions_FxD, other_GxD)
            f_P, g_P, cosine_P = match(similarity.pairs_FxG)
            for place, count in (((i, j), len(living_F)), ((j, i), len(living_G))):
                shared[place] = share(cosine_P, threshold, count)
            mmcs[i, j], mmcs[j, i] = similarity.best_F.mean(), similarity.best_G.mean()
            matched[i, j] = matched[j, i] = cosine_P.sum() / min(len(living_F), len(living_G))
            partner[a][living_F[f_P], j], partner[b][living_G[g_P], i] = living_G[g_P], living_F[f_P]
            cosine[a][living_F[f_P], j] = cosine[b][living_G[g_P], i] = cosine_P
            if activations is not None:
                pairs = correlations(activations[a][:, living_F], activations[b][:, living_G]).pairs_FxG
                r_P = match(pairs)[2]
                by_activation[i, j], by_activation[j, i] = (share(r_P, threshold, len(x)) for x in (living_F, living_G))
                same = cosine_P >= threshold
                # for an empty selection scipy returns a sparse array instead of a vector
                r_P = np.asarray(pairs[f_P[same], g_P[same]]) if same.any() else np.zeros(0)
                confirmed[i, j] = confirmed[j, i] = (r_P >= threshold).mean() if len(r_P) else np.nan
    settings = {name: decoder.settings for name, decoder in decoders.items()}
    given = activations is not None
    found_again, other_seeds = found_in_seeds(decoders, threshold)
    return Comparison(
        members=ids,
        dead=tuple(dead),
        labels=tuple(families.labels(settings).values()),
        alive=tuple(int(d.alive_F.sum()) for d in decoders.values()),
        threshold=threshold,
        shared_MxM=shared,
        chance_MxM=chance,
        mmcs_MxM=mmcs,
        matched_cosine_MxM=matched,
        rows=next(iter(activations.values())).shape[0] if activations else 0,
        shared_by_activation_MxM=by_activation if given else None,
        confirmed_MxM=confirmed if given else None,
        groups=grouped(list(settings.values()), shared, chance, mmcs, by_activation if given else None),
        partner_FxM=partner,
        cosine_FxM=cosine,
        found_again_F=found_again,
        other_seeds=other_seeds,
    )


def share(similarity_P: np.ndarray, threshold: float, count: int) -> float:
    return float((similarity_P >= threshold).sum() / count)


def check(decoders: Mapping[str, Decoder], activations: Mapping[str, csr_array] | None) -> None:
    same = families.alike({name: decoder.settings for name, decoder in decoders.items()}, but_for="")
    if twins := next((names for names in same if len(names) > 1), None):
        raise InputError(f"{' and '.join(twins)} have the same settings and the same seed: give each member once")
    if activations is None:
        return
    if missing := decoders.keys() - activations:
        raise InputError(f"no activations of {', '.join(sorted(missing))}: give those of all members, or none")
    if len(rows := {activations[name].shape[0] for name in decoders}) > 1:
        raise InputError(
            f"activations on {' and '.join(map(str, sorted(rows)))} rows: give activations on the same rows for all"
        )
    for name, decoder in decoders.items():
        if activations[name].shape[1] != len(decoder.alive_F):
            raise InputError(
                f"{name} has {len(decoder.alive_F)} features, but its activations have {activations[name].shape[1]}: "
                "give the activations of this dictionary"
            )


def stability_of(decoders: Mapping[Any, np.ndarray], threshold: float = THRESHOLD) -> dict[Any, np.ndarray]:
    """{seed: in how many other seeds each feature is found again, int [F]}, from {seed: W_dec [F, D]}.

    A feature is found again if its highest cosine in the other seed is `threshold` or more. Rows of dead features must
    be set to zero, so that they are never found.
    """
    units = {seed: unit(W_dec_FxD) for seed, W_dec_FxD in decoders.items()}
    counts = {seed: np.zeros(len(u_FxD), np.int64) for seed, u_FxD in units.items()}
    for a, b in combinations(units, 2):
        similarity = cosines(units[a], units[b])
        counts[a] += similarity.best_F >= threshold
        counts[b] += similarity.best_G >= threshold
    return counts


def found_in_seeds(decoders: Mapping[str, Decoder], threshold: float) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """({member: `stability_of` its features}, {member: number of other seeds}) for members that have other seeds."""
    found_again: dict[str, np.ndarray] = {}
    others: dict[str, int] = {}
    for family in families.alike({name: decoder.settings for name, decoder in decoders.items()}, but_for="seed"):
        if len(family) > 1:
            living = {name: decoders[name].W_dec_FxD * decoders[name].alive_F[:, None] for name in family}
            found_again |= stability_of(living, threshold)
            others |= dict.fromkeys(family, len(family) - 1)
    return found_again, others


def grouped(settings: Sequence[Mapping[str, Any]], *matrices: np.ndarray | None) -> tuple[PairGroup, ...]:
    """The pairs grouped by the settings in which their members differ, fewest differences first."""
    pairs: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for i, j in combinations(range(len(settings)), 2):
        pairs[tuple(map(families.setting_name, families.differing([settings[i], settings[j]])))].append((i, j))

    def spread(matrix: np.ndarray, group: list[tuple[int, int]]) -> Spread:
        return Spread.of([(matrix[i, j] + matrix[j, i]) / 2 for i, j in group])

    return tuple(
        PairGroup("other " + " and ".join(names), len(ij), *(None if x is None else spread(x, ij) for x in matrices))  # type: ignore[arg-type]
        for names, ij in sorted(pairs.items(), key=lambda item: (len(item[0]), item[0]))
    )


def write_shared_features(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.json (the numbers) and comparison.npz (partner, cosine and found_again of each feature)."""
    per_feature = {"partner": comparison.partner_FxM, "cosine": comparison.cosine_FxM}
    per_feature |= {"found_again": comparison.found_again_F}
    arrays: dict[str, Any] = {
        f"{name}/{what}": array for what, by_member in per_feature.items() for name, array in by_member.items()
    }
    record = {name: nested_lists(value) for name, value in vars(comparison).items() if not isinstance(value, dict)}
    record |= {"other_seeds": comparison.other_seeds, "groups": [asdict(group) for group in comparison.groups]}
    written = write_arrays(folder / "comparison.npz", arrays, compressed=True)
    write_json(folder / "comparison.json", {"schema": SCHEMA, ARRAYS: written, **record})
    return [folder / "comparison.json", folder / "comparison.npz"]


def read_shared_features(folder: Path, members: Sequence[str]) -> Comparison | None:
    """The saved comparison of exactly these members, dead ones included; None if there is none."""
    paths = folder / "comparison.json", folder / "comparison.npz"
    if not all(path.exists() for path in paths):
        return None
    record = read_shaped(paths[0], STUDY_AGAIN, shapes.Comparison)
    if record.pop("schema", None) != SCHEMA or {*record["members"], *record["dead"]} != set(members):
        return None
    members, written = record["members"], record.pop(ARRAYS)
    names = {"partner": "partner_FxM", "cosine": "cosine_FxM", "found_again": "found_again_F"}
    of_features: dict[str, dict[str, np.ndarray]] = {suffixed: {} for suffixed in names.values()}
    with read_as(paths[1], STUDY_AGAIN):
        for key, array in read_arrays(paths[1], STUDY_AGAIN, written).items():
            name, _, what = key.rpartition("/")
            of_features[names[what]][name] = array
        for name in members:
            arrays = {w: by_id[name] for w, by_id in of_features.items() if w != "found_again_F" or name in by_id}
            check_arrays(paths[1], arrays, STUDY_AGAIN, {"M": len(members)})
    with read_as(paths[0], STUDY_AGAIN):
        for group in (groups := record.pop("groups")):
            group |= {name: Spread(**value) for name, value in group.items() if isinstance(value, dict)}
        for name, value in record.items():
            if name.endswith("_MxM") and value is not None:
                record[name] = np.array(value, float).reshape(len(members), len(members))
            elif isinstance(value, list):
                record[name] = tuple(value)
        found_again = of_features["found_again_F"].keys()
        if len(record["labels"]) != len(members) or found_again != record["other_seeds"].keys():
            raise ValueError("its labels or other_seeds do not belong to its members")
        record |= of_features
        return Comparison(**record, groups=tuple(PairGroup(**group) for group in groups))


def nested_lists(value: Any) -> Any:
    """A matrix as nested lists with None instead of NaN, which JSON does not have."""
    if not isinstance(value, np.ndarray):
        return value
    return [[None if np.isnan(x) else x for x in row] for row in value.tolist()]
