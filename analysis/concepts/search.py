"""The search for features that detect a concept, and the description of the features that are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.flags import COUNT, NUMBER, Allowed, Flags, flag
from harvest.request import default_cache_dir

if TYPE_CHECKING:
    from analysis.concepts.detectors import FindFeature
    from analysis.features.contexts import Context
    from harvest.model.language_model import LanguageModel
    from harvest.text.concepts import ConceptPassages
    from sae_jax.formats import Dictionary

PROMOTED, CONTEXTS = 10, 10
BETWEEN_0_AND_1 = Allowed(Real, lambda v: 0 < v < 1, "between 0 and 1")


@dataclass(frozen=True)
class FeatureDescription:
    """The tokens that a feature promotes, and the contexts of its largest activations in the corpus."""

    promoted: list[str]
    contexts: list[Context]


@dataclass(frozen=True)
class SearchSettings(Flags):
    """The flags of a search."""

    member: tuple[str, ...] = flag((), "members to search, by ids, parts of ids or `best` (default: all)")
    examples: Path | None = flag(
        None, "file of texts about the concept: .txt with one per line, or .jsonl with each text under the key 'text'"
    )
    against: Path | None = flag(None, "file of texts that are not about the concept (default: passages of the corpus)")
    passages: int = flag(300, "number of documents with the phrase to take from the corpus, at most", COUNT)
    top: int = flag(10, "number of features to report; the best feature of each member is always reported", COUNT)
    fdr: float = flag(0.05, "accepted share of false discoveries among the features that pass", BETWEEN_0_AND_1)
    seed: int = flag(0, "seed of all random choices", NUMBER)
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")


def concept_texts(phrase: str, options: SearchSettings) -> tuple[list[str], list[str]]:
    """(the user's examples, the user's texts without the concept). Raises InputError for texts that cannot be used."""
    from harvest.text.concepts import texts_in
    from harvest.text.folding import Phrase

    wanted = Phrase(phrase)
    examples = texts_in(options.examples, "--examples") if options.examples else []
    against = texts_in(options.against, "--against") if options.against else []
    if against and all(wanted.held_by(text) for text in against):
        raise InputError(
            f"--against {options.against}: each of its {len(against)} texts contains {phrase!r}: give other texts"
        )
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
    """Gather passages, run the model over them once, and search one dictionary at a time."""
    from analysis.concepts.detectors import CHOOSING, find_detectors, split_passages
    from analysis.concepts.max_pooling import activations, max_features, max_projection, mean_difference
    from harvest.text.concepts import gather

    first, seq_len, seed = finished.first_position, finished.seq_len, options.seed
    column, most = finished.request.text_column, options.passages
    texts = gather(phrase, finished.text, model.tokenizer, seq_len, first, examples, against, most, seed, column)
    set_N = split_passages(texts.is_concept_N, seed)
    sites = {name: finished.site(name) for name in dictionaries}
    x = activations(model, texts.passages.tokens_WxT, sites.values())
    directions = {site: mean_difference(x_WxTxD, texts, set_N == CHOOSING) for site, x_WxTxD in x.items()}
    baselines = {site.hook_name: max_projection(directions[site], x_WxTxD, texts) for site, x_WxTxD in x.items()}
    pooled = ((name, max_features(d.sae, x[sites[name]], texts)) for name, d in dictionaries.items())
    return texts, find_detectors(pooled, baselines, texts.is_concept_N, set_N, options.top, options.fdr, seed)


def describe_found(
    finished: FinishedRun, result: FindFeature, model: LanguageModel, cache_dir: Path, **talk: Any
) -> dict[tuple[str, int], FeatureDescription]:
    """A description of each feature that passes, by (member, feature)."""
    from analysis.features.contexts import context_text, token_texts
    from analysis.features.statistics import load_or_compute_features

    passing = [feature for feature in result.features if feature.passes]
    members = list(dict.fromkeys(feature.member for feature in passing))
    statistics = load_or_compute_features(finished, members, cache_dir, **talk) if members else {}
    stores = {site: finished.store(site, cache_dir, **talk) for site in {finished.site(name) for name in members}}
    described = {}
    for feature in passing:
        features, store, f = statistics[feature.member], stores[finished.site(feature.member)], feature.feature
        rows = [int(row) for row in features.top_row_FxK[f, :CONTEXTS] if row >= 0]
        described[feature.member, f] = FeatureDescription(
            token_texts(model.tokenizer, features.promoted_FxT[f, :PROMOTED]),
            [context_text(store, model.tokenizer, row) for row in rows],
        )
    return described


def passages_record(texts: ConceptPassages, trained_documents_W: np.ndarray, seed: int) -> dict[str, int | float]:
    """The numbers and lengths of the passages that were used. The user's texts count as not trained on."""
    from analysis.concepts.detectors import SCORING, split_passages
    from harvest.text.concepts import NO_DOCUMENT

    is_concept_N, is_new_N = texts.is_concept_N, ~np.isin(texts.document_N, trained_documents_W)
    scored_N = split_passages(is_concept_N, seed) == SCORING
    return {
        "concept": int(is_concept_N.sum()),
        "of_which_examples": int((is_concept_N & (texts.document_N == NO_DOCUMENT)).sum()),
        "others": int((~is_concept_N).sum()),
        "documents_read": texts.documents_read,
        "texts_left_out": texts.left_out,
        "near_copies_left_out": texts.near_copies,
        "mean_tokens_concept": float(texts.tokens_N[is_concept_N].mean()),
        "mean_tokens_others": float(texts.tokens_N[~is_concept_N].mean()),
        "scored_concept": int((is_concept_N & scored_N).sum()),
        "scored_concept_not_trained_on": int((is_concept_N & scored_N & is_new_N).sum()),
        "scored_others": int((~is_concept_N & scored_N).sum()),
        "scored_others_not_trained_on": int((~is_concept_N & scored_N & is_new_N).sum()),
    }


def densities_of(result: FindFeature, dictionaries: Mapping[str, Dictionary]) -> dict[tuple[str, int], float | None]:
    """The density of each found feature, by (member, feature); None for a dictionary without densities."""
    densities: dict[tuple[str, int], float | None] = {}
    for found in result.features:
        density_F = dictionaries[found.member].density_F
        densities[found.member, found.feature] = None if density_F is None else float(density_F[found.feature])
    return densities


def search_record(
    phrase: str,
    settings: SearchSettings,
    passages: dict[str, int | float],
    result: FindFeature,
    densities: Mapping[tuple[str, int], float | None],
    descriptions: Mapping[tuple[str, int], FeatureDescription],
) -> dict[str, Any]:
    """All numbers of a search, for a JSON file. Features that pass have their promoted tokens and contexts."""
    record: dict[str, Any] = {
        "phrase": phrase,
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(settings).items()},
        "passages": passages,
        **asdict(result),
    }
    for entry in record["features"]:
        found = entry["member"], entry["feature"]
        entry["density"] = densities[found]
        if description := descriptions.get(found):
            contexts = [context._asdict() for context in description.contexts]
            entry |= {"promoted": description.promoted, "contexts": contexts}
    return record
