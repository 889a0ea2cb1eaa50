"""The features of a dictionary to show where there is no room for all, and what to show of each.

Half of them are those most specialized over chance (of the features that fire often enough to be asked); the others lie
at evenly spaced ranks of density, so that the rare and the frequent are seen too.
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

RULE = "half by specialization over chance, half at evenly spaced ranks of density"
CONTEXTS, TOKENS = 5, 8


@dataclass(frozen=True)
class Highlight:
    """Of one feature. `on` names the label it is most specialized on and `over_chance` by how much; None: not asked."""

    feature: int
    density: float
    max: float
    token_share: float
    on: str | None
    over_chance: float | None
    promoted: list[str]
    suppressed: list[str]
    contexts: list[tuple[float, Context]]  # activation, text around it


def choose(features: Features, count: int) -> list[int]:
    """At most `count` living features, the specialized ones first, most specialized on top; then by falling density."""
    living = np.flatnonzero(features.alive_F)
    score_F = specialization_of(features)[0]
    asked = living[~np.isnan(score_F[living])]
    special = asked[np.argsort(-score_F[asked], kind="stable")][: count // 2]
    rest = np.setdiff1d(living, special)
    rest = rest[np.argsort(-features.density_F[rest], kind="stable")]
    places = np.linspace(0, len(rest) - 1, min(len(rest), count - len(special))).round().astype(int)
    return [*map(int, special), *map(int, rest[places])]


def specialization_of(features: Features) -> tuple[np.ndarray, list[str | None]]:
    """(over chance on the set of labels where it is largest [F], that set and the label); NaN and None: not asked."""
    asked = judged(features)
    score_F = np.full(len(features.density_F), np.nan)
    on: list[str | None] = [None] * len(score_F)
    if not (len(asked) and features.labels):
        return score_F, on
    sets = list(features.labels)
    score_SxA = np.stack([over_chance(features.label_score[name][1])[asked] for name in sets])
    score_F[asked] = score_SxA.max(0)
    for feature, best in zip(asked, score_SxA.argmax(0), strict=True):
        name = sets[best]
        rate_L = features.label_count[name][feature] / np.maximum(features.label_rows[name], 1)
        on[feature] = f"{name}: {features.labels[name][int(rate_L.argmax())]}"
    return score_F, on


def highlights(features: Features, chosen: Sequence[int], store: ActivationStore, tokenizer) -> list[Highlight]:
    score_F, on = specialization_of(features)
    return [
        Highlight(
            feature=f,
            density=float(features.density_F[f]),
            max=float(features.max_F[f]),
            token_share=float(features.token_share_F[f]),
            on=on[f],
            over_chance=None if np.isnan(score_F[f]) else float(score_F[f]),
            promoted=token_texts(tokenizer, features.promoted_FxT[f, :TOKENS]),
            suppressed=token_texts(tokenizer, features.suppressed_FxT[f, :TOKENS]),
            contexts=[
                (float(value), context_text(store, tokenizer, int(row)))
                for value, row in zip(features.top_value_FxK[f], features.top_row_FxK[f], strict=True)
                if row >= 0
            ][:CONTEXTS],
        )
        for f in chosen
    ]
