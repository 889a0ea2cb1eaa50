"""Which feature fires on a concept? By a phrase, by examples, or by both.

python main.py find-feature RUN "the Golden Gate Bridge"                     # passages of the run's own corpus
python main.py find-feature RUN bridges --examples bridges.txt               # and examples of yours, one a line
python main.py find-feature RUN irony --examples yes.txt --against no.txt    # against texts of yours
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.cli.flags import Parser, filled
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.terminal.detectors import LEGEND, Description, description_text, found_table
from analysis.ui.terminal.live import Terminal
from harvest.errors import InputError
from harvest.files import write_json
from harvest.request import default_cache_dir, flag

if TYPE_CHECKING:
    import numpy as np

    from analysis.concepts.detectors import FindFeature
    from harvest.model.language_model import LanguageModel
    from harvest.text.concepts import ConceptPassages
    from sae_jax.formats import Dictionary

PROMOTED, CONTEXTS, CONTEXTS_SHOWN = 10, 10, 3


@dataclass(frozen=True)
class Options:
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


def run(argv: list[str]) -> None:
    parser = Parser(prog="main.py find-feature", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("phrase", metavar="PHRASE", help="in any case; a leading article does not count")
    parser.add_flags("what", Options)
    values = vars(parser.parse_args(argv))
    options, phrase = filled(Options, values), values["phrase"]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.cache_dir / "compiled"))
    finished = FinishedRun.open(values["run"])
    members = finished.chosen(options.member)
    examples, against = texts_of(phrase, finished, options)

    with Terminal() as terminal:
        talk: dict[str, Any] = {"on_progress": terminal.progress, "say": terminal.say}
        store = finished.store(finished.site(members[0]), options.cache_dir, **talk)
        dictionaries = {name: finished.dictionary(name) for name in members}
        model = finished.language_model
        of, result = find(phrase, finished, model, dictionaries, options, examples, against)
        descriptions = describe(finished, result, model, options.cache_dir, **talk)
        record = {
            "phrase": phrase,
            "settings": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items()},
            "passages": passages_record(of, store.train.documents, options.seed),
            **asdict(result),
        }
        for entry in record["features"]:
            name, feature = entry["member"], entry["feature"]
            entry["density"] = density_of(dictionaries[name], feature)
            if description := descriptions.get((name, feature)):
                contexts = [context._asdict() for context in description.contexts]
                entry |= {"promoted": description.promoted, "contexts": contexts}
        for line in summary(phrase, record["passages"], result, options.fdr):
            terminal.say(line)
        show(result, descriptions, dictionaries, terminal)
        path = options.json or finished.path / "analysis" / "find" / f"{slug(phrase)}.json"
        if not options.json and not can_be_kept(finished.path, terminal.say):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        terminal.say(f"all figures: {path}")


def texts_of(phrase: str, finished: FinishedRun, options: Options) -> tuple[list[str], list[str]]:
    """The user's examples, and what they are held against. Raises InputError for what can be told without a model."""
    from harvest.text.concepts import texts_in
    from harvest.text.folding import Phrase

    wanted = Phrase(phrase)
    examples = texts_in(options.examples, "--examples") if options.examples else []
    against = texts_in(options.against, "--against") if options.against else []
    if against and all(wanted.held_by(text) for text in against):
        raise InputError(f"--against {options.against}: each of its {len(against)} texts holds {phrase!r}: give others")
    return examples, against


def find(
    phrase: str,
    finished: FinishedRun,
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    options: Options,
    examples: list[str],
    against: list[str],
) -> tuple[ConceptPassages, FindFeature]:
    """One pass of the model over the passages, then one dictionary at a time."""
    from analysis.concepts.detectors import CHOOSING, compute, deal
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
    return of, compute(pooled, baselines, of.is_concept_N, set_N, options.top, options.fdr, seed)


def describe(
    finished: FinishedRun, result: FindFeature, model: LanguageModel, cache_dir: Path, **talk: Any
) -> dict[tuple[str, int], Description]:
    """What each feature that passes promotes, and where it is largest in the corpus."""
    from analysis.features.contexts import context_text
    from analysis.features.statistics import features_of

    passing = [found for found in result.features if found.passes]
    members = list(dict.fromkeys(found.member for found in passing))
    features = features_of(finished, members, cache_dir, **talk) if members else {}
    stores = {site: finished.store(site, cache_dir, **talk) for site in {finished.site(name) for name in members}}
    described = {}
    for found in passing:
        of, store, f = features[found.member], stores[finished.site(found.member)], found.feature
        rows = [int(row) for row in of.top_row_FxK[f, :CONTEXTS] if row >= 0]
        described[found.member, f] = Description(
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
    import numpy as np

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


def summary(phrase: str, passages: dict[str, Any], result: FindFeature, fdr: float) -> list[str]:
    from analysis.concepts.detectors import ENOUGH

    p, passing = passages, sum(found.passes for found in result.features)
    lines = [
        f"{phrase}: {p['concept']} passages of {p['mean_tokens_concept']:.0f} tokens, {p['of_which_examples']} of them "
        f"examples, and {p['others']} others of {p['mean_tokens_others']:.0f}; {p['documents_read']:,} documents read",
        f"scored on {p['scored_concept']} passages and {p['scored_others']} others, of which "
        f"{p['scored_concept_not_trained_on']} and {p['scored_others_not_trained_on']} were not trained on",
    ]
    if p["texts_left_out"]:
        lines.append(
            f"left out: {p['texts_left_out']} of your texts, which nearly equal another or, given against it, hold the "
            "phrase"
        )
    if p["near_copies_left_out"]:
        lines.append(
            f"left out: {p['near_copies_left_out']} near-copies among the documents and passages of the corpus"
        )
    tried = f"of {sum(result.tried.values()):,} features tried in {len(result.tried)} dictionaries"
    if passing:
        return [
            *lines,
            f"{tried}, {passing} of the {len(result.features)} best pass, at a false discovery rate of {fdr:g}",
        ]
    few = (
        f" {p['concept']} passages are too few, {ENOUGH} are needed: give examples (--examples)"
        if p["concept"] < ENOUGH
        else ""
    )
    return [*lines, f"nothing found: {tried}, none passes at a false discovery rate of {fdr:g}.{few}"]


def show(
    result: FindFeature,
    descriptions: Mapping[tuple[str, int], Description],
    dictionaries: Mapping[str, Dictionary],
    terminal: Terminal,
) -> None:
    of_all, bests = result.features[: result.top], list(result.best_of_members.values())
    densities = {(f.member, f.feature): density_of(dictionaries[f.member], f.feature) for f in result.features}
    terminal.show(found_table("Each dictionary's best", bests, densities, result.baselines))
    terminal.show(found_table(f"The best {len(of_all)} of all", of_all, densities, {}))
    for found in result.features:
        if description := descriptions.get((found.member, found.feature)):
            terminal.show(description_text(found, description, CONTEXTS_SHOWN))
    terminal.say(LEGEND)


def slug(phrase: str) -> str:
    return re.sub(r"\W+", "-", phrase.lower()).strip("-")[:80]
