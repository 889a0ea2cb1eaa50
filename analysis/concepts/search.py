"""The features that detect a concept: passages are found, dictionaries are tried, and what is found is described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.request import default_cache_dir, flag

if TYPE_CHECKING:
    from analysis.concepts.detectors import FindFeature
    from analysis.features.contexts import Context
    from harvest.model.language_model import LanguageModel
    from harvest.text.concepts import ConceptPassages
    from sae_jax.formats import Dictionary

PROMOTED, CONTEXTS = 10, 10


@dataclass(frozen=True)
class FeatureDescription:
    """Of a feature: the tokens that it promotes, and where it is largest in the corpus."""

    promoted: list[str]
    contexts: list[Context]


@dataclass(frozen=True)
class SearchSettings:
    """What it is found by, and how much is reported."""

    member: tuple[str, ...] = flag((), "ids of members (default: all)")
    examples: Path | None = flag(None, "texts about it: .txt, one a line, or .jsonl with a text under the key 'text'")
    against: Path | None = flag(None, "texts that are not, in place of others of the corpus")
    passages: int = flag(300, "documents of the corpus with the phrase, at most")
    top: int = flag(10, "features reported, besides the best of each member")
    fdr: float = flag(0.05, "false discovery rate among those that pass")
    seed: int = flag(0, "of everything drawn")
    json: Path | None = flag(
        None, "file for all figures (default: in the run, analysis/find/PHRASE.json)", written=True
    )
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")

    def __post_init__(self) -> None:
        if not 0 < self.fdr < 1:
            raise InputError(f"--fdr {self.fdr}: must be between 0 and 1")
        for name in ("top", "passages"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"--{name} {value}: must be 1 or more")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must be 0 or more")


def concept_texts(phrase: str, finished: FinishedRun, options: SearchSettings) -> tuple[list[str], list[str]]:
    """The user's examples, and what they are held against. Raises InputError for what can be told without a model."""
    from harvest.text.concepts import texts_in
    from harvest.text.folding import Phrase

    wanted = Phrase(phrase)
    examples = texts_in(options.examples, "--examples") if options.examples else []
    against = texts_in(options.against, "--against") if options.against else []
    if against and all(wanted.held_by(text) for text in against):
        raise InputError(f"--against {options.against}: each of its {len(against)} texts holds {phrase!r}: give others")
    return examples, against


def search(
    phrase: str,
    finished: FinishedRun,
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    options: SearchSettings,
    examples: list[str],
    against: list[str],
) -> tuple[ConceptPassages, FindFeature]:
    """One pass of the model over the passages, then one dictionary at a time."""
    from analysis.concepts.detectors import CHOOSING, deal, find_detectors
    from analysis.concepts.max_pooling import activations, max_features, max_projection, mean_difference
    from harvest.text.concepts import gather

    first, seq_len, seed = finished.first_position, finished.request.seq_len, options.seed
    of = gather(phrase, finished.corpus, model.tokenizer, seq_len, first, examples, against, options.passages, seed)
    set_N = deal(of.is_concept_N, seed)
    sites = {name: finished.site(name) for name in dictionaries}
    x = activations(model, of.passages.tokens_WxT, sites.values())
    directions = {site: mean_difference(x_WxTxD, of, set_N == CHOOSING) for site, x_WxTxD in x.items()}
    baselines = {site.hook_name: max_projection(directions[site], x_WxTxD, of) for site, x_WxTxD in x.items()}
    pooled = ((name, max_features(d.sae, x[sites[name]], of)) for name, d in dictionaries.items())
    return of, find_detectors(pooled, baselines, of.is_concept_N, set_N, options.top, options.fdr, seed)


def describe_found(
    finished: FinishedRun, result: FindFeature, model: LanguageModel, cache_dir: Path, **talk: Any
) -> dict[tuple[str, int], FeatureDescription]:
    """What each feature that passes promotes, and where it is largest in the corpus."""
    from analysis.features.contexts import context_text
    from analysis.features.statistics import load_or_compute_features

    passing = [found for found in result.features if found.passes]
    members = list(dict.fromkeys(found.member for found in passing))
    features = load_or_compute_features(finished, members, cache_dir, **talk) if members else {}
    stores = {site: finished.store(site, cache_dir, **talk) for site in {finished.site(name) for name in members}}
    described = {}
    for found in passing:
        of, store, f = features[found.member], stores[finished.site(found.member)], found.feature
        rows = [int(row) for row in of.top_row_FxK[f, :CONTEXTS] if row >= 0]
        described[found.member, f] = FeatureDescription(
            [model.tokenizer.decode([int(token)]) for token in of.promoted_FxT[f, :PROMOTED]],
            [context_text(store, model.tokenizer, row) for row in rows],
        )
    return described


def density_of(dictionary: Dictionary, feature: int) -> float | None:
    """Share of held-out rows on which a feature fires, where the dictionary's files say it."""
    if dictionary.log_sparsity_F is None:
        return None
    return float(max(0.0, 10 ** float(dictionary.log_sparsity_F[feature]) - 1e-10))


def passages_record(of: ConceptPassages, trained_documents_W: np.ndarray, seed: int) -> dict[str, int | float]:
    """What it was found by. A text of the user's counts among those not trained on."""
    from analysis.concepts.detectors import SCORING, deal
    from harvest.text.concepts import NO_DOCUMENT

    is_new_N = ~np.isin(of.document_N, trained_documents_W)
    scored_N = deal(of.is_concept_N, seed) == SCORING
    return {
        "concept": int(of.is_concept_N.sum()),
        "of_which_examples": int((of.is_concept_N & (of.document_N == NO_DOCUMENT)).sum()),
        "others": int((~of.is_concept_N).sum()),
        "documents_read": of.documents_read,
        "texts_left_out": of.left_out,
        "near_copies_left_out": of.near_copies,
        "mean_tokens_concept": float(of.tokens_N[of.is_concept_N].mean()),
        "mean_tokens_others": float(of.tokens_N[~of.is_concept_N].mean()),
        "scored_concept": int((of.is_concept_N & scored_N).sum()),
        "scored_concept_not_trained_on": int((of.is_concept_N & scored_N & is_new_N).sum()),
        "scored_others": int((~of.is_concept_N & scored_N).sum()),
        "scored_others_not_trained_on": int((~of.is_concept_N & scored_N & is_new_N).sum()),
    }
