"""A selection of a dictionary's features for pages that have no room for all, and what to show of each.

Half of them are the features with the highest specialization over chance, among those that fire often enough to measure
it. The others are at evenly spaced ranks of density, so that rare and frequent features are included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.features.contexts import Context, context_text, token_texts
from analysis.features.specialists import SPECIAL, judged, most_special
from analysis.features.statistics import Features
from harvest.store import ActivationStore

RULE = (
    "Half of the features that are shown of a member are its most specialized ones over chance. The other half are "
    "spread evenly over the ranks of density. Each feature stands with the contexts in which it is largest. In each "
    "context the token at which it is largest is marked."
)
RULE_OF_ROWS = "The features that are shown of a member are spread evenly over the ranks of density."
CONTEXTS, TOKENS = 5, 8


@dataclass(frozen=True)
class Highlight:
    """One feature. `on` is the label on whose rows it fires at the highest rate, `over_chance` its specialization.

    Both are None for a feature that is hardly specialized, or fires too rarely to measure it. `strongest` are the
    tokens of its strongest contexts.
    """

    feature: int
    density: float
    max: float
    on: str | None
    over_chance: float | None
    strongest: list[str]
    promoted: list[str]
    suppressed: list[str]
    contexts: list[tuple[float, Context]]  # (activation, the text around it)


def choose_highlights(features: Features, score_F: np.ndarray, count: int) -> list[int]:
    """Numbers of at most `count` living features: the most specialized ones first, then others by falling density.

    `score_F` is the specialization, NaN if it is not measured.
    """
    living = np.flatnonzero(features.alive_F)
    measured = living[~np.isnan(score_F[living])]
    special = measured[np.argsort(-score_F[measured], kind="stable")][: count // 2]
    rest = np.setdiff1d(living, special)
    rest = rest[np.argsort(-features.density_F[rest], kind="stable")]
    places = np.linspace(0, len(rest) - 1, min(len(rest), count - len(special))).round().astype(int)
    return [*map(int, special), *map(int, rest[places])]


def highlights(features: Features, count: int, store: ActivationStore, tokenizer) -> list[Highlight]:
    """At most `count` features with what to show of each."""
    label_F, special_F = most_special(features)
    is_measured_F = np.isin(np.arange(len(special_F)), judged(features)) & bool(features.labels)
    score_F = np.where(is_measured_F, special_F, np.nan)
    return [
        Highlight(
            feature=f,
            density=float(features.density_F[f]),
            max=float(features.max_F[f]),
            on=label_F[f] if score_F[f] >= SPECIAL else None,
            over_chance=float(score_F[f]) if score_F[f] >= SPECIAL else None,
            strongest=token_texts(tokenizer, [token for token in features.strongest_FxK[f, :TOKENS] if token >= 0]),
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
