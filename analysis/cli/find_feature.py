"""Which feature fires on a concept? By a phrase, by examples, or by both.

python main.py find-feature RUN "the Golden Gate Bridge"                     # passages of the run's own corpus
python main.py find-feature RUN bridges --examples bridges.txt               # and examples of yours, one a line
python main.py find-feature RUN irony --examples yes.txt --against no.txt    # against texts of yours
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.cli.flags import Parser, filled
from analysis.concepts.search import (
    FeatureDescription,
    SearchSettings,
    concept_texts,
    density_of,
    describe_found,
    passages_record,
    search,
)
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.terminal.detectors import LEGEND, description_text, found_table, search_summary
from analysis.ui.terminal.live import Terminal
from harvest.files import write_json

CONTEXTS_SHOWN = 3

if TYPE_CHECKING:
    from analysis.concepts.detectors import FindFeature
    from sae_jax.formats import Dictionary


def run(argv: list[str]) -> None:
    parser = Parser(prog="main.py find-feature", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("phrase", metavar="PHRASE", help="in any case; a leading article does not count")
    parser.add_flags("what", SearchSettings)
    values = vars(parser.parse_args(argv))
    options, phrase = filled(SearchSettings, values), values["phrase"]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.cache_dir / "compiled"))
    finished = FinishedRun.open(values["run"])
    members = finished.chosen(options.member)
    examples, against = concept_texts(phrase, finished, options)

    with Terminal() as terminal:
        talk: dict[str, Any] = {"on_progress": terminal.progress, "say": terminal.say}
        store = finished.store(finished.site(members[0]), options.cache_dir, **talk)
        dictionaries = {name: finished.dictionary(name) for name in members}
        model = finished.language_model
        of, result = search(phrase, finished, model, dictionaries, options, examples, against)
        descriptions = describe_found(finished, result, model, options.cache_dir, **talk)
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
        for line in search_summary(phrase, record["passages"], result, options.fdr):
            terminal.say(line)
        show(result, descriptions, dictionaries, terminal)
        path = options.json or finished.path / "analysis" / "find" / f"{slug(phrase)}.json"
        if not options.json and not can_be_kept(finished.path, terminal.say):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        terminal.say(f"all figures: {path}")


def show(
    result: FindFeature,
    descriptions: Mapping[tuple[str, int], FeatureDescription],
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
