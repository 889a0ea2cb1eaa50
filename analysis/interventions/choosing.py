"""The choice of the feature that steers best towards a concept, among those that detect it or promote its words.

A feature that detects a concept well often steers badly (Arad et al. 2025, arXiv 2505.20063), so the candidates are
ranked by their output scores.

Shapes: C candidates, T tokens, D width of the model, F features, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.concepts.search import SearchSettings, concept_texts, search
from harvest.errors import InputError
from harvest.request import Site

if TYPE_CHECKING:
    from analysis.features.statistics import Features
    from analysis.runs.finished import FinishedRun
    from harvest.model.language_model import LanguageModel
    from sae_jax.models.base import SAE

NEUTRAL = "From my experience,"  # Arad et al. 2025
AMPLIFIED = (1.0, 2.0, 4.0)  # strengths of output_scores, in units of the maximum


@dataclass(frozen=True)
class Choice:
    """The features that were tried for a concept, and their output scores."""

    detecting: list[int]
    promoting: list[int]
    scores: dict[int, float]  # best first


def choose_feature(
    concept: str,
    finished: FinishedRun,
    member: str,
    features: Features,
    watched: Sequence[int],
    settings: SearchSettings,
    say: Callable[[str], None],
) -> Choice:
    """Score at most `settings.top` features that detect a concept, and as many that promote a watched token.

    Raises InputError if there is no such feature.
    """
    detecting: list[int] = []
    try:
        detecting = detecting_features(concept, finished, member, settings)
    except InputError as error:  # too few passages hold the phrase, but a feature may promote its words
        say(f"only features that promote the concept's words are tried, because {error}")
    promoting = promoting_features(features, watched, settings.top)
    tried = list(dict.fromkeys([*detecting, *promoting]))
    if not tried:
        raise InputError(
            f"--concept {concept}: no feature detects the concept or promotes its words: "
            "give --examples, or a --feature"
        )
    model, site, sae = finished.language_model, finished.site(member), finished.dictionary(member).sae
    scores = output_scores(model, site, sae, tried, watched, features.max_F, finished.first_position)
    return Choice(detecting, promoting, scores)


def detecting_features(concept: str, finished: FinishedRun, member: str, settings: SearchSettings) -> list[int]:
    """The features that detect a concept, as find-feature finds them. Raises InputError if too few passages hold it."""
    dictionaries = {member: finished.dictionary(member)}
    texts = concept_texts(concept, settings)
    _, result = search(concept, finished, finished.language_model, dictionaries, settings, *texts)
    return [feature.feature for feature in result.features if feature.passes]


def promoting_features(features: Features, watched: Sequence[int], most: int) -> list[int]:
    """At most `most` features that promote a watched token and fire on the corpus, largest logit weight first."""
    largest = {}
    for feature in np.flatnonzero(features.alive_F).tolist():
        token_T, weight_T = features.promoted_at_peak(feature)
        if (is_watched_T := np.isin(token_T, watched)).any():
            largest[feature] = weight_T[is_watched_T].max()
    return sorted(largest, key=lambda feature: -largest[feature])[:most]


def word_tokens(tokenizer: Any, phrase: str) -> list[int]:
    """The first tokens of a phrase's words after a space: as written, in lower case, and capitalized.

    Function words are left out, unless there are no others. So are first tokens of one letter, which begin many words.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = re.findall(r"\w+", phrase)
    if not words:
        raise InputError(f"--concept {phrase!r} contains no word: give a word or phrase")
    words = [word for word in words if word.lower() not in ENGLISH_STOP_WORDS] or words
    forms = dict.fromkeys(form for word in words for form in (word, word.lower(), word.capitalize()))
    ids = [tokenizer(f" {form}", add_special_tokens=False)["input_ids"] for form in forms]
    first = {next((t for t in tokens if tokenizer.decode([t]).strip()), tokens[0]): None for tokens in ids}
    return [token for token in first if len(tokenizer.decode([token]).strip()) > 1] or list(first)


def output_scores(
    model: LanguageModel,
    site: Site,
    sae: SAE,
    candidates: Sequence[int],
    watched: Sequence[int],
    max_F: np.ndarray,
    first_position: int,
) -> dict[int, float]:
    """The output score of each candidate, best first: S_out = (1 − best rank / V) · max p over the watched tokens.

    The score is that of Arad et al. 2025: ranks (from 0) and probabilities p after a neutral prompt with the feature
    amplified. It is the largest over the strengths AMPLIFIED. Two choices differ from the paper:
    - The paper watches the 20 tokens that the feature promotes. Then a feature could win that promotes a word of the
      concept, but other words more.
    - The paper amplifies to ten times the largest activation of all features. That is so far from any real activation
      that features which steer fluently score lower than others.
    """
    from harvest.interventions.steering import next_probabilities

    prompt_T = model.tokenizer(NEUTRAL, add_special_tokens=False)["input_ids"]
    chosen_C = np.array(list(candidates), int)
    steps_CxD = max_F[chosen_C, None] * np.asarray(sae.W_dec[...])[chosen_C]
    score_C = np.zeros(len(chosen_C))
    for amplified in AMPLIFIED:
        p_CxV = next_probabilities(model, prompt_T, site, (amplified * steps_CxD).astype(np.float32), first_position)
        best_C = p_CxV[:, list(watched)].max(1)
        rank_C = (p_CxV > best_C[:, None]).sum(1)
        score_C = np.maximum(score_C, (1 - rank_C / p_CxV.shape[1]) * best_C)
    return {int(chosen_C[c]): float(score_C[c]) for c in np.argsort(-score_C, kind="stable")}
