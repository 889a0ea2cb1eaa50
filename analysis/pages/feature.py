"""The content of a feature's page.

It is computed from the run's saved statistics, comparison and snapshots, and from one encoding of the windows of its
contexts, which gives every token its activation. This needs a tokenizer, but not the language model.

Shapes: F features, C contexts, T tokens of a window, P positions of a window that have a row, D width of the model,
J other features, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from analysis.comparison.shared_features import Comparison
from analysis.features.activations import values_of_feature
from analysis.features.bands import Aligned, alignment, context_groups
from analysis.features.contexts import place, token_texts
from analysis.features.mapped import mapped_arrays
from analysis.features.specialization import over_chance
from analysis.features.statistics import Features
from analysis.runs.finished import FinishedRun
from harvest.store import ActivationStore
from sae_jax.formats import Dictionary
from sae_jax.training.snapshots import ADVICE, DIRECTORY

NAMED = 5  # promoted tokens that describe another feature


class ShownContext(NamedTuple):
    """A window in which the feature fires; `peak` is the token for which it was selected.

    `value_T` is 0 at a first position that training left out.
    """

    tokens: list[str]
    value_T: np.ndarray
    peak: int
    document: int
    held_out: bool


class Band(NamedTuple):
    """Contexts of similar strength: the strongest (share None), or a sample from a share of the firings by rank."""

    low: float
    high: float
    share: float | None
    contexts: list[ShownContext]


class Beside(NamedTuple):
    feature: int
    similarity: float
    promoted: list[str]


class Label(NamedTuple):
    """The label of a set on whose rows the feature fires at the highest rate. Most firings may be on other labels."""

    name: str
    label: str
    rate: float  # share of the label's rows on which the feature fires
    specialization: float  # on all labels of the set, minus that with shuffled labels


class Twin(NamedTuple):
    """The feature's one-to-one match in another member; `feature` is None if none has a cosine of the threshold."""

    member: str
    feature: int | None
    cosine: float


class Stage(NamedTuple):
    """A snapshot: the highest cosine of any decoder row to the feature's final direction, and that of its own row."""

    step: int
    best: float
    own: float


@dataclass(frozen=True)
class FeaturePage:
    """The content of the page of one feature, besides its statistics."""

    threshold: float | None  # None if its kind has no threshold
    token: str  # the token on which it fires most often
    strongest: list[str]  # the tokens of its strongest contexts
    labels: list[Label]
    aligned: list[Aligned]
    input_score: float  # share of the strongest contexts whose peak is on a token that it promotes (Arad et al. 2025)
    bands: list[Band]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    neighbours: list[Beside]  # features with the highest cosines of decoder rows
    together: list[Beside]  # features with the highest phi, the correlation of firing
    found_again: tuple[int, int] | None  # (seeds in which it is found again, other seeds); None if there are no others
    twins: list[Twin]
    stages: list[Stage]


def compute_feature_page(
    run: FinishedRun,
    member: str,
    feature: int,
    features: Features,
    dictionary: Dictionary,
    store: ActivationStore,
    tokenizer: Any,
    compared: Comparison | None,
) -> FeaturePage:
    """Compute a feature's page. `features`, `dictionary` and `store` are those of the member."""
    f = feature
    threshold_F = dictionary.tensors.get("threshold")
    again_F = compared.found_again_F.get(member) if compared else None
    promoted, suppressed = (
        list(zip(token_texts(tokenizer, token_T), weight_T.tolist(), strict=True))
        for token_T, weight_T in (
            (features.promoted_FxT[f], features.promoted_weight_FxT[f]),
            (features.suppressed_FxT[f], features.suppressed_weight_FxT[f]),
        )
    )
    return FeaturePage(
        threshold=None if threshold_F is None else float(threshold_F[f]),
        token=token_texts(tokenizer, [features.token_F[f]])[0] if features.token_F[f] >= 0 else "",
        strongest=token_texts(tokenizer, [token for token in features.strongest_FxK[f] if token >= 0]),
        labels=labels_of(features, f),
        aligned=alignment(dictionary.tensors["W_dec"][f]),
        input_score=input_score(features, f, store),
        bands=bands_of(features, f, dictionary, store, tokenizer),
        promoted=promoted,
        suppressed=suppressed,
        neighbours=beside(features, tokenizer, features.neighbour_FxJ[f], features.neighbour_cosine_FxJ[f]),
        together=beside(features, tokenizer, features.together_FxJ[f], features.together_phi_FxJ[f], above=0.0),
        found_again=None if again_F is None or not compared else (int(again_F[f]), compared.other_seeds[member]),
        twins=twins_of(compared, member, f),
        stages=stages_of(run, member, f),
    )


def as_json(features: Features, feature: int, page: FeaturePage) -> dict[str, Any]:
    """The content of a feature's page and its statistics, for a JSON file."""
    statistics = {
        "feature": feature,
        "density": float(features.density_F[feature]),
        "max": float(features.max_F[feature]),
        "mean": float(features.mean_F[feature]),
    }
    return statistics | {name: plain(value) for name, value in vars(page).items()}


def plain(value: Any) -> Any:
    """Named tuples and arrays as what JSON has."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def labels_of(features: Features, feature: int) -> list[Label]:
    """The label of each set on which a feature fires most often, by falling specialization. Empty if it never fires."""
    labels = []
    for name, names in features.labels.items():
        rows_L, count_L = features.label_rows[name], features.label_count[name][feature]
        if not count_L.any():
            continue
        rate_L = count_L / np.maximum(rows_L, 1)
        score = over_chance(np.array(features.label_score[name][1, :, feature]))
        labels.append(Label(name, names[rate_L.argmax()], float(rate_L.max()), float(score)))
    return sorted(labels, key=lambda label: -label.specialization)


def input_score(features: Features, feature: int, store: ActivationStore) -> float:
    """The share of the strongest contexts whose peak is on a token that the feature promotes (Arad et al. 2025)."""
    row_K = features.top_row_FxK[feature]
    peaks = [tokens_T[peak] for tokens_T, peak, _ in (place(store, row) for row in row_K[row_K >= 0].tolist())]
    return float(np.isin(peaks, features.promoted_at_peak(feature)[0]).mean()) if peaks else 0.0


def bands_of(
    features: Features, feature: int, dictionary: Dictionary, store: ActivationStore, tokenizer: Any
) -> list[Band]:
    """The strongest contexts, then those of each interval of ranks. All their windows are encoded at once."""
    groups = context_groups(features, feature)
    rows_C = np.concatenate([np.empty(0, np.int64), *(group.rows for group in groups)])
    contexts = iter(shown_contexts(dictionary, feature, store, tokenizer, rows_C))
    bands = []
    for group in groups:
        shown = [next(contexts) for _ in group.rows]
        if group.bin_min < 0 and group.bin_contains < 0:
            peaks = [float(context.value_T[context.peak]) for context in shown]
            bands.append(Band(min(peaks), max(peaks), None, shown))
        else:
            bands.append(Band(group.bin_min, group.bin_max, group.bin_contains / features.density_F[feature], shown))
    return bands


def shown_contexts(
    dictionary: Dictionary, feature: int, store: ActivationStore, tokenizer: Any, rows_C: np.ndarray
) -> list[ShownContext]:
    """The windows of these rows. Held-out rows are numbered after training rows."""
    if not len(rows_C):
        return []
    trained, first, window_C = len(store.train), store.train.first_position, store.places(rows_C)[0]
    kept_CxP, rows = [], []
    for window in window_C.tolist():
        is_train = window < store.train.n_windows
        split, number = (store.train, window) if is_train else (store.held_out, window - store.train.n_windows)
        kept_CxP.append(split.kept_positions(number, number + 1)[0])
        rows.append(split.read(*split.rows_between(number, number + 1)))
    value_CxT = np.zeros((len(rows_C), first + store.train.positions), np.float32)
    x_NxD = np.concatenate(rows).astype(np.float32)
    value_CxT[:, first:][np.stack(kept_CxP)] = values_of_feature(dictionary, feature, x_NxD)
    places = [place(store, row) for row in rows_C.tolist()]
    texts = iter(token_texts(tokenizer, np.concatenate([tokens_T for tokens_T, _, _ in places])))
    return [
        ShownContext([next(texts) for _ in tokens_T], value_T, position, document, row >= trained)
        for (tokens_T, position, document), value_T, row in zip(places, value_CxT, rows_C.tolist(), strict=True)
    ]


def beside(
    features: Features, tokenizer: Any, others_J: np.ndarray, similarity_J: np.ndarray, above: float = -np.inf
) -> list[Beside]:
    """Other features whose similarity is larger than `above`, with the tokens that they promote most."""
    return [
        Beside(int(other), float(similarity), token_texts(tokenizer, features.promoted_FxT[other, :NAMED]))
        for other, similarity in zip(others_J, similarity_J, strict=True)
        if similarity > above
    ]


def twins_of(compared: Comparison | None, member: str, feature: int) -> list[Twin]:
    """The feature's match in each other member; empty without a comparison."""
    if compared is None or member not in compared.members:  # members whose features never fire are not compared
        return []
    matches = zip(
        compared.members, compared.partner_FxM[member][feature], compared.cosine_FxM[member][feature], strict=True
    )
    return [
        Twin(other, int(partner) if partner >= 0 and cosine >= compared.threshold else None, float(cosine))
        for other, partner, cosine in matches
        if other != member
    ]


def stages_of(run: FinishedRun, member: str, feature: int) -> list[Stage]:
    """For each snapshot: the highest cosine of a decoder row to the feature's final direction, and that of its own row.

    Empty if the run has no snapshots.
    """
    paths = sorted((run.path / DIRECTORY).glob(f"*/{member}.npz"))
    snapshots = {int(path.parent.name): mapped_arrays(path, ADVICE) for path in paths}
    if not snapshots:
        return []
    final_D = snapshots[max(snapshots)]["direction"][feature].astype(np.float32)
    stages = []
    for step, arrays in snapshots.items():
        cosine_F = arrays["direction"].astype(np.float32) @ final_D
        stages.append(Stage(step, float(cosine_F.max()), float(cosine_F[feature])))
    return stages
