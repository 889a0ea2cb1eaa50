"""Everything that is known of one feature: what a page about it shows.

From what the run keeps already (statistics, comparison, snapshots) and one encoding of the contexts' windows, so that
each of their tokens has its activation. No language model: a tokenizer does.

Shapes: F features, T tokens of a window, P positions of a window with a row, D width of the model, B bars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from analysis.comparison.shared_features import Comparison
from analysis.features.activations import values_of_feature
from analysis.features.bands import Aligned, alignment, groups_of
from analysis.features.contexts import place, token_texts
from analysis.features.mapped import mapped_arrays
from analysis.features.specialization import over_chance
from analysis.features.statistics import Features
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.store import ActivationStore
from sae_jax.formats import Dictionary
from sae_jax.training.snapshots import ADVICE, DIRECTORY

NAMED = 5  # tokens that name a feature beside it


class ShownContext(NamedTuple):
    """A window; `value_T` is 0 at a first position that training left out, `peak` the token that it was chosen by."""

    tokens: list[str]
    value_T: np.ndarray
    peak: int
    document: int
    held_out: bool


class Band(NamedTuple):
    """Contexts of about one strength: the strongest of all (share None), or some of a share of the firings by rank."""

    low: float
    high: float
    share: float | None
    contexts: list[ShownContext]


class Bars(NamedTuple):
    """A histogram."""

    count_B: np.ndarray
    edge_E: np.ndarray


class Beside(NamedTuple):
    feature: int
    similarity: float
    promoted: list[str]


class Label(NamedTuple):
    """The label of a set on whose rows it fires most, for how many there are."""

    name: str
    label: str
    rate: float  # share of that label's rows on which it fires
    specialization: float  # over all labels of the set, less that of labels dealt anew


class Twin(NamedTuple):
    """Its one-to-one match in another member; `feature` is None where it has none."""

    member: str
    feature: int | None
    cosine: float


class Stage(NamedTuple):
    """A snapshot: the best cosine of any decoder row to the feature's final direction, and that of its own row."""

    step: int
    best: float
    own: float
    density: float


@dataclass(frozen=True)
class FeaturePage:
    member: str
    feature: int
    density: float  # share of all rows
    mean: float  # where it fires
    maximum: float
    threshold: float | None  # where its kind has one
    cosine: float  # of its encoder and decoder vectors
    token: str  # its most frequent one
    token_share: float  # of a sample of its firings
    position_P: np.ndarray  # share of the rows at a position on which it fires
    labels: list[Label]
    activations: Bars
    logits: Bars  # of its weight on each token of the vocabulary
    aligned: list[Aligned]
    input_score: float  # share of the strongest contexts whose peak is on a token that it promotes (Arad et al. 2025)
    bands: list[Band]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    neighbours: list[Beside]  # by the cosine of decoder rows
    together: list[Beside]  # by phi
    found_again: tuple[int, int] | None  # in so many of so many other seeds; None: there are none
    twins: list[Twin]
    stages: list[Stage]

    @property
    def fires(self) -> bool:
        return self.density > 0


def compute_feature_page(
    run: FinishedRun,
    member: str,
    feature: int,
    features: Features,
    dictionary: Dictionary,
    store: ActivationStore,
    tokenizer: Any,
    compared: Comparison | None = None,
) -> FeaturePage:
    """All but `run` and the tokenizer are this member's. Raises InputError for a feature that it does not have."""
    of, f = features, feature
    if not 0 <= f < len(of.density_F):
        raise InputError(f"feature {f}: {member} has 0 to {len(of.density_F) - 1}")
    threshold_F = dictionary.tensors.get("threshold")
    again_F = compared.found_again_F.get(member) if compared else None
    promoted, suppressed = (
        list(zip(token_texts(tokenizer, token_T), weight_T.tolist(), strict=True))
        for token_T, weight_T in (
            (of.promoted_FxT[f], of.promoted_weight_FxT[f]),
            (of.suppressed_FxT[f], of.suppressed_weight_FxT[f]),
        )
    )
    return FeaturePage(
        member=member,
        feature=f,
        density=float(of.density_F[f]),
        mean=float(of.mean_F[f]),
        maximum=float(of.max_F[f]),
        threshold=None if threshold_F is None else float(threshold_F[f]),
        cosine=float(of.cosine_F[f]),
        token=token_texts(tokenizer, [of.token_F[f]])[0] if of.token_F[f] >= 0 else "",
        token_share=float(of.token_share_F[f]),
        position_P=np.array(of.position_FxP[f]),
        labels=labels_of(of, f),
        activations=Bars(*of.activations(f)),
        logits=Bars(*of.logits(f)),
        aligned=alignment(dictionary.tensors["W_dec"][f]),
        input_score=input_score(of, f, store),
        bands=bands_of(of, f, dictionary, store, tokenizer),
        promoted=promoted,
        suppressed=suppressed,
        neighbours=beside(of, tokenizer, of.neighbour_FxJ[f], of.neighbour_cosine_FxJ[f]),
        together=beside(of, tokenizer, of.together_FxJ[f], of.together_phi_FxJ[f], above=0.0),
        found_again=None if again_F is None or not compared else (int(again_F[f]), compared.other_seeds[member]),
        twins=twins_of(compared, member, f),
        stages=stages_of(run, member, f),
    )


def labels_of(features: Features, feature: int) -> list[Label]:
    """Of each set of labels, the most telling first; none where it never fires."""
    found = []
    for name, names in features.labels.items():
        rows_L, count_L = features.label_rows[name], features.label_count[name][feature]
        if not count_L.any():
            continue
        rate_L = count_L / np.maximum(rows_L, 1)
        score = over_chance(np.array(features.label_score[name][1, :, feature]))
        found.append(Label(name, names[rate_L.argmax()], float(rate_L.max()), float(score)))
    return sorted(found, key=lambda label: -label.specialization)


def input_score(features: Features, feature: int, store: ActivationStore) -> float:
    row_K = features.top_row_FxK[feature]
    peaks = [tokens_T[at] for tokens_T, at, _ in (place(store, row) for row in row_K[row_K >= 0].tolist())]
    return float(np.isin(peaks, features.promoted_FxT[feature]).mean()) if peaks else 0.0


def bands_of(
    features: Features, feature: int, dictionary: Dictionary, store: ActivationStore, tokenizer: Any
) -> list[Band]:
    """Its strongest contexts, then those of each stretch of ranks; all their windows are encoded at once."""
    groups = groups_of(features, feature)
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
    """The windows of these rows, which count on from training rows to held-out ones."""
    if not len(rows_C):
        return []
    positions, first, trained = store.train.positions, store.train.first_position, len(store.train)
    start_C = rows_C // positions * positions
    x_CxPxD = np.stack(
        [
            store.train.read(s, s + positions)
            if s < trained
            else store.held_out.read(s - trained, s - trained + positions)
            for s in start_C.tolist()
        ]
    )
    value_N = values_of_feature(dictionary, feature, x_CxPxD.reshape(-1, x_CxPxD.shape[-1]).astype(np.float32))
    value_CxT = np.pad(value_N.reshape(-1, positions), ((0, 0), (first, 0)))
    places = [place(store, row) for row in rows_C.tolist()]
    texts = iter(token_texts(tokenizer, np.concatenate([tokens_T for tokens_T, _, _ in places])))
    return [
        ShownContext([next(texts) for _ in tokens_T], value_T, position, document, row >= trained)
        for (tokens_T, position, document), value_T, row in zip(places, value_CxT, rows_C.tolist(), strict=True)
    ]


def beside(
    features: Features, tokenizer: Any, others_J: np.ndarray, similarity_J: np.ndarray, above: float = -np.inf
) -> list[Beside]:
    """Other features with the tokens that each promotes most."""
    return [
        Beside(int(other), float(similarity), token_texts(tokenizer, features.promoted_FxT[other, :NAMED]))
        for other, similarity in zip(others_J, similarity_J, strict=True)
        if similarity > above
    ]


def twins_of(compared: Comparison | None, member: str, feature: int) -> list[Twin]:
    if compared is None or member not in compared.members:  # none of its features ever fires
        return []
    matches = zip(
        compared.members, compared.partner_FxM[member][feature], compared.cosine_FxM[member][feature], strict=True
    )
    return [
        Twin(other, int(partner) if partner >= 0 else None, float(cosine))
        for other, partner, cosine in matches
        if other != member
    ]


def stages_of(run: FinishedRun, member: str, feature: int) -> list[Stage]:
    """By the snapshots of training; empty where none were kept."""
    paths = sorted((run.path / DIRECTORY).glob(f"*/{member}.npz"))
    snapshots = {int(path.parent.name): mapped_arrays(path, ADVICE) for path in paths}
    if not snapshots:
        return []
    final_D = snapshots[max(snapshots)]["direction"][feature].astype(np.float32)
    stages = []
    for step, arrays in snapshots.items():
        cosine_F = arrays["direction"].astype(np.float32) @ final_D
        stages.append(Stage(step, float(cosine_F.max()), float(cosine_F[feature]), float(arrays["density"][feature])))
    return stages
