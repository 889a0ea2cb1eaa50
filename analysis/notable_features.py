"""Which features of a dictionary to look at first, and what is known of each in one place.

Shapes: F features, A of them asked, S shuffles, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.contexts import Context, context_text, token_texts
from analysis.feature_statistics import Features
from analysis.measures import judged
from analysis.specialization import over_chance
from harvest.store import ActivationStore

CONTEXTS, TOKENS = 5, 8
RULE = (
    "half of them the most specialized over chance on any set of labels, the rest evenly spaced over the living "
    "features by how often they fire"
)


@dataclass(frozen=True)
class FeatureCard:
    """`share`: of a context's activation in the feature's largest; `found_again`: in how many of so many seeds."""

    feature: int
    why: str
    density: float
    largest: float
    mean: float
    token: str
    token_share: float
    promoted: list[str]
    suppressed: list[str]
    found_again: tuple[int, int] | None
    contexts: list[tuple[float, Context]]


def notable(features: Features, count: int) -> dict[int, str]:
    """{feature: why it is shown}, `count` at most, by RULE; all living ones, in their order, where there are no more."""
    living = np.flatnonzero(features.alive_F)
    if len(living) <= count:
        return {int(feature): "" for feature in living}
    chosen = specialists(features, count // 2)
    by_density = living[np.argsort(-features.density_F[living], kind="stable")]
    left = [int(feature) for feature in by_density if int(feature) not in chosen]
    rank = {int(feature): place + 1 for place, feature in enumerate(by_density)}
    for place in np.linspace(0, len(left) - 1, count - len(chosen)).round().astype(int):
        chosen[left[place]] = f"fires as the {rank[left[place]]:,}th most often of {len(living):,}"
    return chosen


def specialists(features: Features, count: int) -> dict[int, str]:
    """Of the features that fire often enough to be asked, those with the highest specialization over chance."""
    asked = judged(features)
    if not len(asked):
        return {}
    sets = list(features.labels)
    score_LxA = np.stack([over_chance(features.label_score[name][1][:, asked]) for name in sets])
    best_A = score_LxA.argmax(0)
    chosen = {}
    for place in np.argsort(-score_LxA.max(0), kind="stable")[:count]:
        feature, name = int(asked[place]), sets[best_A[place]]
        rate_L = features.label_count[name][feature] / np.maximum(features.label_rows[name], 1)
        label = features.labels[name][int(rate_L.argmax())]
        chosen[feature] = f"{name} “{label}”: specialized {score_LxA[best_A[place], place]:.2f} over chance"
    return chosen


def cards(
    features: Features,
    store: ActivationStore,
    tokenizer,
    count: int,
    found_again_F: np.ndarray | None = None,
    other_seeds: int = 0,
) -> list[FeatureCard]:
    """Of the notable features; `found_again_F` as in a Comparison."""
    found = []
    for feature, why in notable(features, count).items():
        largest = float(features.max_F[feature])
        rows = [
            (float(value / largest), context_text(store, tokenizer, int(row)))
            for value, row in zip(features.top_value_FxK[feature], features.top_row_FxK[feature], strict=True)
            if row >= 0
        ]
        (token,) = token_texts(tokenizer, [features.token_F[feature]])
        found.append(
            FeatureCard(
                feature=feature,
                why=why,
                density=float(features.density_F[feature]),
                largest=largest,
                mean=float(features.mean_F[feature]),
                token=token,
                token_share=float(features.token_share_F[feature]),
                promoted=texts(tokenizer, features.promoted_FxT[feature]),
                suppressed=texts(tokenizer, features.suppressed_FxT[feature]),
                found_again=None if found_again_F is None else (int(found_again_F[feature]), other_seeds),
                contexts=rows[:CONTEXTS],
            )
        )
    return found


def texts(tokenizer, tokens_T: Sequence[int] | np.ndarray) -> list[str]:
    return token_texts(tokenizer, tokens_T[:TOKENS])
