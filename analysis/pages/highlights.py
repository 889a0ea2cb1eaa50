"""The features of a dictionary to show where there is no room for all, and what to show of each.

Half of them are those most specialized over chance (of the features that fire often enough to be asked); the others lie
at evenly spaced ranks of density, so that the rare and the frequent are seen too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.features.contexts import Context, context_text, token_texts
from analysis.features.specialists import judged, most_special
from analysis.features.statistics import Features
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


def choose_highlights(features: Features, score_F: np.ndarray, count: int) -> list[int]:
    """At most `count` living features, the specialized ones first, most specialized on top; then by falling density.

    `score_F` is NaN for those that are not asked.
    """
    living = np.flatnonzero(features.alive_F)
    asked = living[~np.isnan(score_F[living])]
    special = asked[np.argsort(-score_F[asked], kind="stable")][: count // 2]
    rest = np.setdiff1d(living, special)
    rest = rest[np.argsort(-features.density_F[rest], kind="stable")]
    places = np.linspace(0, len(rest) - 1, min(len(rest), count - len(special))).round().astype(int)
    return [*map(int, special), *map(int, rest[places])]


def highlights(features: Features, count: int, store: ActivationStore, tokenizer) -> list[Highlight]:
    """Of at most `count` features."""
    label_F, special_F = most_special(features)
    is_asked_F = np.isin(np.arange(len(special_F)), judged(features))
    score_F = np.where(is_asked_F, special_F, np.nan)
    return [
        Highlight(
            feature=f,
            density=float(features.density_F[f]),
            max=float(features.max_F[f]),
            token_share=float(features.token_share_F[f]),
            on=label_F[f] if is_asked_F[f] else None,
            over_chance=float(score_F[f]) if is_asked_F[f] else None,
            promoted=token_texts(tokenizer, features.promoted_FxT[f, :TOKENS]),
            suppressed=token_texts(tokenizer, features.suppressed_FxT[f, :TOKENS]),
            contexts=[
                (float(value), context_text(store, tokenizer, int(row)))
                for value, row in zip(features.top_value_FxK[f], features.top_row_FxK[f], strict=True)
                if row >= 0
            ][:CONTEXTS],
        )
        for f in choose_highlights(features, score_F, count)
    ]
