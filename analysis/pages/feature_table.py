"""All features of a dictionary as a list to search, to filter and to sort, and as a map.

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

SHOWN_TOKENS, SEARCHED_TOKENS = 5, 20


@dataclass(frozen=True)
class FeatureList:
    """`specialization_F`: over labels dealt anew, of the set on which it is most; `label_F` names the label."""

    density_F: np.ndarray
    maximum_F: np.ndarray
    token_F: list[str]  # its most frequent
    token_share_F: np.ndarray
    promotes_F: list[str]
    words_F: list[str]  # all that is searched, in lower case
    label_F: list[str]
    specialization_F: np.ndarray


def compute_feature_table(features: Features, tokenizer: Any) -> FeatureList:
    promoted_FxT = np.array(features.promoted_FxT[:, :SEARCHED_TOKENS])
    known, place = np.unique(np.concatenate([promoted_FxT.ravel(), features.token_F]), return_inverse=True)
    texts = np.array([printable(text) for text in ["", *token_texts(tokenizer, known[known >= 0])]], object)
    text_N = texts[place + (known[0] >= 0)]  # −1, of no token, is the first of all where there is one
    promoted_N, token_F = text_N[: promoted_FxT.size].reshape(promoted_FxT.shape), text_N[promoted_FxT.size :].tolist()
    label_F, specialization_F = most_special(features)
    return FeatureList(
        density_F=np.array(features.density_F),
        maximum_F=np.array(features.max_F),
        token_F=token_F,
        token_share_F=np.array(features.token_share_F),
        promotes_F=[" · ".join(own[:SHOWN_TOKENS]) for own in promoted_N.tolist()],
        words_F=["\n".join([token, *own]).casefold() for token, own in zip(token_F, promoted_N.tolist(), strict=True)],
        label_F=label_F,
        specialization_F=specialization_F,
    )


ORDERS: dict[str, Callable[[FeatureList], np.ndarray]] = {  # what comes first has the least
    "number": lambda of: np.arange(len(of.density_F)),
    "most frequent": lambda of: -of.density_F,
    "least frequent": lambda of: np.where(of.density_F > 0, of.density_F, np.inf),
    "strongest": lambda of: -np.abs(of.maximum_F),
    "most specialized": lambda of: -of.specialization_F,
    "most of one token": lambda of: -of.token_share_F,
}


def choose_features(
    of: FeatureList, words: str, density: tuple[float, float], specialization: float, order: str = "number"
) -> np.ndarray:
    """Numbers of the features [N] that have all words in their tokens, such a density, and at least so special."""
    chosen_F = (of.density_F >= density[0]) & (of.density_F <= density[1]) & (of.specialization_F >= specialization)
    if asked := words.casefold().split():
        chosen_F &= np.array([all(word in own for word in asked) for own in of.words_F])
    chosen_N = np.flatnonzero(chosen_F)
    return chosen_N[np.argsort(ORDERS[order](of)[chosen_N], kind="stable")]


def places(folder: Path, member: str, W_dec_FxD: np.ndarray) -> tuple[np.ndarray, str]:
    """(xy [F, 2], what it is): the study's map where there is one, else two principal components of the directions."""
    path = folder / f"clusters-{member}.npz"
    if path.exists():
        record = read_shaped(path.with_suffix(".json"), STUDY_AGAIN, Clusters)
        arrays = read_arrays(path, STUDY_AGAIN, record[ARRAYS])
        check_arrays(path, arrays, STUDY_AGAIN, {"F": len(W_dec_FxD)})
        return arrays["xy_Fx2"], f"{record['method']}, by the study"
    advice = "`python main.py study` makes a map by UMAP, of one member a kind"
    return pca_of(unit(W_dec_FxD), 2)[0], f"two principal components; {advice}"
