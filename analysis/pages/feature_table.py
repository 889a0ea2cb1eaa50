"""A table of all features of a dictionary that can be searched, filtered and sorted, and their positions on a map.

Shapes: F features, N of them chosen, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.features.contexts import printable, token_texts
from analysis.features.specialists import most_special
from analysis.features.statistics import Features
from analysis.geometry import pca_of, unit
from analysis.runs.finished import STUDY_AGAIN
from analysis.runs.shapes import Clusters
from harvest.files import ARRAYS, read_arrays
from sae_jax.shapes import check_arrays, read_shaped

SHOWN_TOKENS, SEARCHED_TOKENS = 4, 20  # more would not fit into a column


@dataclass(frozen=True)
class FeatureList:
    """The columns of the table, with an entry for each feature."""

    density_F: np.ndarray
    maximum_F: np.ndarray
    token_F: list[str]  # the token on which the feature fires most often
    token_share_F: np.ndarray
    strongest_F: list[str]  # the tokens of its strongest contexts
    promotes_F: list[str]
    words_F: list[str]  # the text that is searched, in lower case
    label_F: list[str]  # the label on whose rows the feature fires at the highest rate, of the set with the best score
    specialization_F: np.ndarray  # on the set of that label, minus that with shuffled labels


def compute_feature_table(features: Features, tokenizer: Any) -> FeatureList:
    """The table of a dictionary's features."""
    searched_FxT = np.column_stack(
        [features.token_F, features.strongest_FxK, features.promoted_FxT[:, :SEARCHED_TOKENS]]
    )
    known, place = np.unique(searched_FxT, return_inverse=True)
    texts = np.array(["", *map(printable, token_texts(tokenizer, known[known >= 0]))], object)
    text_FxT = texts[place.reshape(searched_FxT.shape) + (known[0] >= 0)]  # token −1 (none) has the text ""
    strongest = features.strongest_FxK.shape[1]
    token_F, strongest_FxK, promoted_FxT = np.split(text_FxT, [1, 1 + strongest], axis=1)
    label_F, specialization_F = most_special(features)
    return FeatureList(
        density_F=np.array(features.density_F),
        maximum_F=np.array(features.max_F),
        token_F=token_F[:, 0].tolist(),
        token_share_F=np.array(features.token_share_F),
        strongest_F=[" · ".join(filter(None, tokens[:SHOWN_TOKENS])) for tokens in strongest_FxK.tolist()],
        promotes_F=[" · ".join(tokens[:SHOWN_TOKENS]) for tokens in promoted_FxT.tolist()],
        words_F=["\n".join(tokens).casefold() for tokens in text_FxT.tolist()],
        label_F=label_F,
        specialization_F=specialization_F,
    )


ORDERS: dict[str, Callable[[FeatureList], np.ndarray]] = {  # sort keys: the smallest comes first
    "number": lambda table: np.arange(len(table.density_F)),
    "most frequent": lambda table: -table.density_F,
    "least frequent": lambda table: np.where(table.density_F > 0, table.density_F, np.inf),
    "strongest": lambda table: -np.abs(table.maximum_F),
    "most specialized": lambda table: -table.specialization_F,
    "most of one token": lambda table: -table.token_share_F,
}


def choose_features(
    table: FeatureList, words: str, density: tuple[float, float], specialization: float, order: str = "number"
) -> np.ndarray:
    """Numbers of the features [N] whose tokens contain all words, within the range of density and specialization."""
    low, high = density
    chosen_F = (table.density_F >= low) & (table.density_F <= high) & (table.specialization_F >= specialization)
    if searched := words.casefold().split():
        chosen_F &= np.array([all(word in text for word in searched) for text in table.words_F])
    chosen_N = np.flatnonzero(chosen_F)
    return chosen_N[np.argsort(ORDERS[order](table)[chosen_N], kind="stable")]


def found_tokens(table: FeatureList, feature: int, words: str) -> str:
    """The tokens of a feature in which words of the search occur."""
    searched = words.casefold().split()
    tokens = dict.fromkeys(table.words_F[feature].split("\n"))
    return " · ".join(token for token in tokens if any(word in token for word in searched))


def places(folder: Path, member: str, W_dec_FxD: np.ndarray) -> tuple[np.ndarray, str]:
    """(xy [F, 2], a description): the study's map if there is one, otherwise two principal components."""
    path = folder / f"clusters-{member}.npz"
    if path.exists():
        record = read_shaped(path.with_suffix(".json"), STUDY_AGAIN, Clusters)
        arrays = read_arrays(path, STUDY_AGAIN, record[ARRAYS])
        check_arrays(path, arrays, STUDY_AGAIN, {"F": len(W_dec_FxD)})
        return arrays["xy_Fx2"], f"{record['method']}, from the study"
    advice = "`study` makes a UMAP map for one member of each kind"
    return pca_of(unit(W_dec_FxD), 2)[0], f"two principal components; {advice}"
